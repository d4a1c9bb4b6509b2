// Products of packed rows with vectors in F32.

#if defined(ISOTHERM_COMMON_KERNELS_FLOAT_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_FLOAT_PRODUCTS_INL_H_
#undef ISOTHERM_COMMON_KERNELS_FLOAT_PRODUCTS_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_FLOAT_PRODUCTS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "common/kernels/decode-inl.h"
#include "common/kernels/read_ahead-inl.h"
#include "common/kernels/row_kernels.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

// Every product uses the same partial sums in the same order, whatever tile it is computed in: column c
// belongs to lane c % LanesF() of sum c / LanesF() % 4. That makes results of all tiles bit-equal.
inline constexpr int kSums = 4;

HWY_INLINE float Total(const VF (&sums)[kSums]) {
  const DF d;
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]))));
}

// One step: 4 * LanesF() columns of the group from `column` on, of which the first `columns` count where
// kPartial. `x` is that of the group.
template <bool kPartial, class Decoder, int kRows, int kVectors>
HWY_INLINE void Step(const Decoder (&decoders)[kRows], const float* x, int64_t ldx, int64_t column,
                     int64_t columns, VF (&sums)[kRows][kVectors][kSums]) {
  const DF d;
  HWY_UNROLL(4)
  for (int64_t s = 0; s < kSums; ++s) {
    const int64_t offset = s * LanesF();
    if (kPartial && offset >= columns) return;
    VF values[kVectors];
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      const float* const from = x + v * ldx + column + offset;
      values[v] = kPartial ? hn::MaskedLoad(hn::FirstN(d, static_cast<size_t>(columns - offset)), d, from)
                           : hn::LoadU(d, from);
    }
    HWY_UNROLL(4)
    for (int r = 0; r < kRows; ++r) {
      const VF weights = decoders[r].Decode(column, offset);
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) sums[r][v][s] = hn::MulAdd(weights, values[v], sums[r][v][s]);
    }
  }
}

// Products of weights decoded to F32. Vectors are read as they are.
template <WeightType kType>
struct FloatProducts {
  static int64_t InputBytes(int64_t) { return 0; }
  static void Prepare(const float*, int64_t, uint8_t*) {}

  // y[v * ldy + r] = rows[r] . vector v for one tile; `next` are as many rows that follow it.
  template <int kRows, int kVectors>
  static void MultiplyTile(const uint8_t* const* rows, const uint8_t* const* next, const RowInputs& inputs,
                           int64_t n, float* y, int64_t ldy);
};

template <WeightType kType>
template <int kRows, int kVectors>
void FloatProducts<kType>::MultiplyTile(const uint8_t* const* rows, const uint8_t* const* next,
                                        const RowInputs& inputs, int64_t n, float* y, int64_t ldy) {
  constexpr int64_t kStep = kSums * LanesF();
  const DF d;
  const auto* const x = reinterpret_cast<const float*>(inputs.data);
  const int64_t ldx = inputs.stride / static_cast<int64_t>(sizeof(float));
  ReadAhead<kType, kRows> ahead(rows, next, n);
  RowDecoder<kType> decoders[kRows];
  VF sums[kRows][kVectors][kSums];
  HWY_UNROLL(4)
  for (int r = 0; r < kRows; ++r) {
    decoders[r].Open(rows[r], n);
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      HWY_UNROLL(4)
      for (int s = 0; s < kSums; ++s) sums[r][v][s] = hn::Zero(d);
    }
  }
  for (int64_t begin = 0; begin < n; begin += kGroupColumns) {
    const int64_t count = std::min(n - begin, kGroupColumns);
    HWY_UNROLL(4)
    for (int r = 0; r < kRows; ++r) decoders[r].Enter(begin, begin + count);
    ahead.Enter(begin);
    int64_t column = 0;
    for (; column + kStep <= count; column += kStep) {
      ahead.template Advance<kStep>();
      Step<false>(decoders, x + begin, ldx, column, kStep, sums);
    }
    if (column < count) Step<true>(decoders, x + begin, ldx, column, count - column, sums);
  }
  HWY_UNROLL(4)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) y[v * ldy + r] = Total(sums[r][v]);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#endif  // ISOTHERM_COMMON_KERNELS_FLOAT_PRODUCTS_INL_H_
