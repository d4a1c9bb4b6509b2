#include "common/kernels/row_kernels.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
// clang-format off: foreach_target.h comes before everything that is compiled for each target.
#define HWY_TARGET_INCLUDE "common/kernels/row_kernels.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// clang-format on
#include "common/kernels/decode-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

// Every product uses the same partial sums in the same order, whatever tile it is computed in: column c
// belongs to lane c % LanesF() of sum c / LanesF() % 4. That makes results of a tile bit-equal to those of
// `dot`.
inline constexpr int kSums = 4;

// Tiles of rows by vectors, so that loads of x and decoded weights are shared. The partial sums of a tile
// fill half of the registers (32 with AVX-512, 16 with AVX2), enough to hide the latency of fused
// multiply-adds (4 cycles, 2 a cycle).
inline constexpr int kTile = HWY_TARGET <= HWY_AVX3 ? 4 : 2;

inline constexpr int64_t kLineBytes = 64;

// The first level would lose lines it needs.
HWY_INLINE void PrefetchToSecondLevel(const uint8_t* line) {
  _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
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

// y[v * ldy + r] = rows[r] . x[v] for one tile. Meanwhile asks for as many bytes from `ahead` on, unless the
// tile is a single product, which knows of nothing that follows.
template <WeightType kType, int kRows, int kVectors>
void MultiplyTile(const uint8_t* rows, int64_t stride, const float* x, int64_t ldx, int64_t n, float* y,
                  int64_t ldy, const uint8_t* ahead) {
  constexpr int64_t kStep = kSums * LanesF();
  constexpr int64_t kAheadBytes = kRows * kVectors == 1 ? 0 : kRows * RowDecoder<kType>::AheadBytes(kStep);
  const DF d;
  RowDecoder<kType> decoders[kRows];
  VF sums[kRows][kVectors][kSums];
  HWY_UNROLL(4)
  for (int r = 0; r < kRows; ++r) {
    decoders[r].Open(rows + r * stride, n);
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
    int64_t column = 0;
    for (; column + kStep <= count; column += kStep) {
      for (int64_t i = 0; i < kAheadBytes; i += kLineBytes) PrefetchToSecondLevel(ahead + i);
      ahead += kAheadBytes;
      Step<false>(decoders, x + begin, ldx, column, kStep, sums);
    }
    if (column < count) Step<true>(decoders, x + begin, ldx, column, count - column, sums);
  }
  HWY_UNROLL(4)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      const VF(&sum)[kSums] = sums[r][v];
      const VF total = hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]));
      y[v * ldy + r] = hn::GetLane(hn::SumOfLanes(d, total));
    }
  }
}

template <WeightType kType>
float Dot(const uint8_t* row, const float* x, int64_t n) {
  float sum;
  MultiplyTile<kType, 1, 1>(row, 0, x, 0, n, &sum, 0, row);
  return sum;
}

// All rows with kVectors vectors, kRows at a time.
template <WeightType kType, int kRows, int kVectors>
void MultiplyRows(const uint8_t* rows, int64_t stride, int64_t num_rows, const float* x, int64_t ldx,
                  int64_t n, float* y, int64_t ldy) {
  int64_t r = 0;
  for (; r + kRows <= num_rows; r += kRows) {
    const uint8_t* const tile = rows + r * stride;
    // The last tile asks for itself, which costs nothing.
    const uint8_t* const ahead = r + 2 * kRows <= num_rows ? tile + kRows * stride : tile;
    MultiplyTile<kType, kRows, kVectors>(tile, stride, x, ldx, n, y + r, ldy, ahead);
  }
  for (; r < num_rows; ++r) {
    const uint8_t* const row = rows + r * stride;
    MultiplyTile<kType, 1, kVectors>(row, stride, x, ldx, n, y + r, ldy, row);
  }
}

// Rows that stay in the second-level cache, with room to spare, while the vectors of a batch pass by.
inline constexpr int64_t kCachedBytes = 128 << 10;

template <WeightType kType>
void MatMulRows(const uint8_t* rows, int64_t stride, int64_t num_rows, const float* x, int64_t ldx,
                int64_t batch, int64_t n, float* y, int64_t ldy) {
  const int64_t block_rows =
      batch == 1 ? num_rows
                 : std::max<int64_t>(kTile, kCachedBytes / std::max<int64_t>(stride, 1) / kTile * kTile);
  for (int64_t r = 0; r < num_rows; r += block_rows) {
    const uint8_t* const block = rows + r * stride;
    const int64_t count = std::min(block_rows, num_rows - r);
    int64_t b = 0;
    for (; b + 2 <= batch; b += 2) {
      MultiplyRows<kType, kTile / 2, 2>(block, stride, count, x + b * ldx, ldx, n, y + b * ldy + r, ldy);
    }
    if (b < batch)
      MultiplyRows<kType, kTile, 1>(block, stride, count, x + b * ldx, ldx, n, y + b * ldy + r, ldy);
  }
}

// y[i] = update(row[i], y[i]).
template <WeightType kType, class Update>
HWY_INLINE void UpdateWith(const uint8_t* row, int64_t n, const Update& update, float* y) {
  constexpr int64_t kStep = kSums * LanesF();
  const DF d;
  RowDecoder<kType> decoder;
  decoder.Open(row, n);
  for (int64_t begin = 0; begin < n; begin += kGroupColumns) {
    const int64_t count = std::min(n - begin, kGroupColumns);
    decoder.Enter(begin, begin + count);
    int64_t column = 0;
    for (; column + kStep <= count; column += kStep) {
      HWY_UNROLL(4)
      for (int64_t s = 0; s < kSums; ++s) {
        float* const to = y + begin + column + s * LanesF();
        hn::StoreU(update(decoder.Decode(column, s * LanesF()), hn::LoadU(d, to)), d, to);
      }
    }
    HWY_UNROLL(4)
    for (int64_t s = 0; s < kSums; ++s) {
      const int64_t offset = s * LanesF();
      if (column + offset >= count) break;
      float* const to = y + begin + column + offset;
      const auto first = hn::FirstN(d, static_cast<size_t>(count - column - offset));
      hn::BlendedStore(update(decoder.Decode(column, offset), hn::MaskedLoad(first, d, to)), first, d, to);
    }
  }
}

struct AddScaled {
  VF factor;
  HWY_INLINE VF operator()(VF weights, VF old) const { return hn::MulAdd(factor, weights, old); }
};

template <WeightType kType>
void Axpy(const uint8_t* row, float a, float* y, int64_t n) {
  UpdateWith<kType>(row, n, AddScaled{hn::Set(DF(), a)}, y);
}

struct Replace {
  HWY_INLINE VF operator()(VF weights, VF) const { return weights; }
};

template <WeightType kType>
void Unpack(const uint8_t* row, int64_t n, float* out) {
  UpdateWith<kType>(row, n, Replace(), out);
}

template <WeightType kType>
constexpr RowKernels KernelsOf() {
  return {Dot<kType>, MatMulRows<kType>, Axpy<kType>, Unpack<kType>};
}

const RowKernels* KernelTable() {
  static constexpr RowKernels kTable[] = {KernelsOf<WeightType::kF32>(),  KernelsOf<WeightType::kF16>(),
                                          KernelsOf<WeightType::kBF16>(), KernelsOf<WeightType::kQ8_0>(),
                                          KernelsOf<WeightType::kQ4_0>(), KernelsOf<WeightType::kQ4_K>(),
                                          KernelsOf<WeightType::kQ6_K>()};
  return kTable;
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm::kernels {

HWY_EXPORT(KernelTable);

const RowKernels& GetRowKernels(WeightType type) {
  return HWY_DYNAMIC_DISPATCH(KernelTable)()[static_cast<int>(type)];
}

}  // namespace isotherm::kernels
#endif  // HWY_ONCE
