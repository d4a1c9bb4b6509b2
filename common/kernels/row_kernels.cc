#include "common/kernels/row_kernels.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
// clang-format off: foreach_target.h comes before everything that is compiled for each target.
#define HWY_TARGET_INCLUDE "common/kernels/row_kernels.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// clang-format on
#include "common/kernels/decode-inl.h"
#include "common/kernels/integer_sums-inl.h"
#include "common/kernels/products-inl.h"
#include "common/kernels/read_ahead-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

// Tiles of rows by vectors, so that loads of x and decoded weights are shared: so many rows by one vector, or
// half of them by two. The partial sums of a tile in F32 fill half of the registers (32 with AVX-512, 16 with
// AVX2), enough to hide the latency of fused multiply-adds (4 cycles, 2 a cycle). Rows with scales apart need
// one sum for each vector instead of kSums, and more rows side by side keep more memory on its way.
template <WeightType kType>
inline constexpr int kRowTile = (HWY_TARGET <= HWY_AVX3 ? 4 : 2) * (RowDecoder<kType>::kScalesApart ? 2 : 1);

// Listed rows with kVectors vectors, kRows at a time. Entries of the list past `num_rows`, kRows of them, are
// rows that are read afterwards.
template <WeightType kType, int kRows, int kVectors>
void MultiplyRows(const uint8_t* const* rows, int64_t num_rows, const RowInputs& inputs, int64_t n, float* y,
                  int64_t ldy) {
  int64_t r = 0;
  for (; r + kRows <= num_rows; r += kRows) {
    Products<kType>::template MultiplyTile<kRows, kVectors>(rows + r, rows + r + kRows, inputs, n, y + r,
                                                            ldy);
  }
  if constexpr (kRows > 1) {
    MultiplyRows<kType, kRows / 2, kVectors>(rows + r, num_rows - r, inputs, n, y + r, ldy);
  }
}

template <WeightType kType>
void MatMulListed(const uint8_t* const* rows, int64_t num_rows, const RowInputs& inputs, int64_t batch,
                  int64_t n, float* y, int64_t ldy) {
  static_assert(kRowTile<kType> <= kRowsAhead);
  int64_t b = 0;
  for (; b + 2 <= batch; b += 2) {
    MultiplyRows<kType, kRowTile<kType> / 2, 2>(rows, num_rows, inputs.From(b), n, y + b * ldy, ldy);
  }
  if (b < batch) MultiplyRows<kType, kRowTile<kType>, 1>(rows, num_rows, inputs.From(b), n, y + b * ldy, ldy);
}

// Rows that stay in the second-level cache, with room to spare, while the vectors of a batch pass by.
inline constexpr int64_t kCachedBytes = 128 << 10;

template <WeightType kType>
void MatMul(const uint8_t* rows, int64_t stride, int64_t num_rows, const RowInputs& inputs, int64_t batch,
            int64_t n, float* y, int64_t ldy) {
  constexpr int64_t kMostListed = 256;
  const int64_t cached = kCachedBytes / std::max<int64_t>(stride, 1) / kRowTile<kType> * kRowTile<kType>;
  const int64_t block_rows = std::clamp<int64_t>(cached, kRowTile<kType>, kMostListed);
  const uint8_t* list[kMostListed + kRowsAhead];
  for (int64_t first = 0; first < num_rows; first += block_rows) {
    const int64_t count = std::min(block_rows, num_rows - first);
    // After the last row nothing follows; it asks for itself, which costs nothing.
    for (int64_t r = 0; r < count + kRowsAhead; ++r) {
      list[r] = rows + std::min(first + r, num_rows - 1) * stride;
    }
    MatMulListed<kType>(list, count, inputs, batch, n, y + first, ldy);
  }
}

// source.Update(y) for the columns from `begin` to n of rows that `source` decodes.
template <class Source>
HWY_INLINE void UpdateWith(int64_t begin, int64_t n, Source& source, float* y) {
  constexpr int64_t kStep = kSums * LanesF();
  const DF d;
  for (; begin < n; begin += kGroupColumns) {
    const int64_t count = std::min(n - begin, kGroupColumns);
    source.Enter(begin, begin + count);
    float* const group = y + begin;
    int64_t column = 0;
    for (; column + kStep <= count; column += kStep) {
      source.template Advance<kStep>();
      VF sums[kSums];
      HWY_UNROLL(4)
      for (int64_t s = 0; s < kSums; ++s) sums[s] = hn::LoadU(d, group + column + s * LanesF());
      source.Update(column, 0, sums);
      HWY_UNROLL(4)
      for (int64_t s = 0; s < kSums; ++s) hn::StoreU(sums[s], d, group + column + s * LanesF());
    }
    HWY_UNROLL(4)
    for (int64_t s = 0; s < kSums; ++s) {
      const int64_t offset = s * LanesF();
      if (column + offset >= count) break;
      float* const to = group + column + offset;
      const auto valid = hn::FirstN(d, static_cast<size_t>(count - column - offset));
      VF sum[1] = {hn::MaskedLoad(valid, d, to)};
      source.Update(column, offset, sum);
      hn::BlendedStore(sum[0], valid, d, to);
    }
  }
}

// y + factor[0] * rows[0] + factor[1] * rows[1] ..., added in this order.
template <WeightType kType, int kRows>
class ScaledRows {
 public:
  HWY_INLINE ScaledRows(const uint8_t* const* rows, const float* factors, int64_t n)
      : ahead_(rows, rows + kRows, n) {
    for (int r = 0; r < kRows; ++r) {
      decoders_[r].Open(rows[r], n);
      factors_[r] = hn::Set(DF(), factors[r]);
    }
  }
  HWY_INLINE void Enter(int64_t begin, int64_t end) {
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kScalesApart) {
        decoders_[r].Enter(begin, end, factors_[r]);
      } else {
        decoders_[r].Enter(begin, end);
      }
    }
    ahead_.Enter(begin);
  }
  template <int64_t kColumns>
  HWY_INLINE void Advance() {
    ahead_.template Advance<kColumns>();
  }
  // Columns from column + offset on.
  template <int kVectors>
  HWY_INLINE void Update(int64_t column, int64_t offset, VF (&sums)[kVectors]) const {
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4)
      for (int64_t s = 0; s < kVectors; ++s) {
        const int64_t at = offset + s * LanesF();
        if constexpr (kScalesApart) {
          sums[s] = hn::MulAdd(decoders_[r].Scales(column, at), decoders_[r].Quants(column, at), sums[s]);
        } else {
          sums[s] = hn::MulAdd(factors_[r], decoders_[r].Decode(column, at), sums[s]);
        }
      }
    }
  }

 private:
  // Scales and factors are multiplied once for a block, not weights with factors.
  static constexpr bool kScalesApart = RowDecoder<kType>::kScalesApart;

  RowDecoder<kType> decoders_[kRows];
  VF factors_[kRows];
  ReadAhead<kType, kRows> ahead_;
};

// The columns from `begin` on.
template <WeightType kType, int kRows = kRowTile<kType>>
void AddScaledRows(const uint8_t* const* rows, int64_t num_rows, const float* factors, int64_t begin,
                   int64_t n, float* y) {
  int64_t r = 0;
  for (; r + kRows <= num_rows; r += kRows) {
    ScaledRows<kType, kRows> source(rows + r, factors + r, n);
    UpdateWith(begin, n, source, y);
  }
  if constexpr (kRows > 1) {
    AddScaledRows<kType, kRows / 2>(rows + r, num_rows - r, factors + r, begin, n, y);
  }
}

// The columns of whole panels in integers, up to 2 * kPairs rows together.
template <int kPairs = kMostRowsTogether / 2>
void AddRowsTogether(const uint8_t* const* rows, int64_t num_rows, const float* factors, int64_t n,
                     float* sums) {
  if constexpr (kPairs > 1) {
    if (num_rows <= 2 * (kPairs - 1)) return AddRowsTogether<kPairs - 1>(rows, num_rows, factors, n, sums);
  }
  using Sums = IntegerSums<kPairs>;
  const uint8_t* of_pairs[Sums::kRows];
  float factors_of_pairs[Sums::kRows];
  for (int64_t r = 0; r < Sums::kRows; ++r) {
    of_pairs[r] = rows[std::min(r, num_rows - 1)];
    factors_of_pairs[r] = r < num_rows ? factors[r] : 0.0f;
  }
  Sums::Add(of_pairs, rows + num_rows, factors_of_pairs, n, sums);
}

template <WeightType kType>
void AddScaled(const uint8_t* const* rows, int64_t num_rows, const float* factors, int64_t n, float* sums) {
  if constexpr (kType == WeightType::kQ4_0) {
    if (num_rows == 0) return;
    AddRowsTogether(rows, num_rows, factors, n, sums);
    const int64_t rest = n % IntegerSums<1>::kPanelColumns;
    if (rest > 0) AddScaledRows<kType>(rows, num_rows, factors, n - rest, n, sums);
  } else {
    AddScaledRows<kType>(rows, num_rows, factors, 0, n, sums);
  }
}

template <WeightType kType>
class Weights {
 public:
  HWY_INLINE Weights(const uint8_t* row, int64_t n) { decoder_.Open(row, n); }
  HWY_INLINE void Enter(int64_t begin, int64_t end) { decoder_.Enter(begin, end); }
  template <int64_t kColumns>
  HWY_INLINE void Advance() {}
  template <int kVectors>
  HWY_INLINE void Update(int64_t column, int64_t offset, VF (&weights)[kVectors]) const {
    HWY_UNROLL(4)
    for (int64_t s = 0; s < kVectors; ++s) weights[s] = decoder_.Decode(column, offset + s * LanesF());
  }

 private:
  RowDecoder<kType> decoder_;
};

template <WeightType kType>
void Unpack(const uint8_t* row, int64_t n, float* out) {
  Weights<kType> source(row, n);
  UpdateWith(0, n, source, out);
}

template <WeightType kType>
void PrefetchRow(const uint8_t* row, int64_t n) {
  PrefetchBytes(row, row + RowDecoder<kType>::AheadBytes(n));
}

template <WeightType kType>
constexpr RowKernels KernelsOf() {
  constexpr bool kTogether = kType == WeightType::kQ4_0;
  return {.input_bytes = Products<kType>::InputBytes,
          .prepare = Products<kType>::Prepare,
          .mat_mul = MatMul<kType>,
          .mat_mul_listed = MatMulListed<kType>,
          .rows_together = kTogether ? kMostRowsTogether : 1,
          .panel_columns = kTogether ? IntegerSums<1>::kPanelColumns : 1,
          .add_scaled = AddScaled<kType>,
          .order_sums = kTogether ? OrderIntegerSums : nullptr,
          .prefetch = PrefetchRow<kType>,
          .unpack = Unpack<kType>};
}

const RowKernels* KernelTable() {
  static constexpr RowKernels kTable[] = {
      KernelsOf<WeightType::kF32>(),  KernelsOf<WeightType::kF16>(),  KernelsOf<WeightType::kBF16>(),
      KernelsOf<WeightType::kQ8_0>(), KernelsOf<WeightType::kQ4_0>(), KernelsOf<WeightType::kQ4_K>(),
      KernelsOf<WeightType::kQ6_K>(), KernelsOf<WeightType::kQ4_1>(), KernelsOf<WeightType::kQ5_0>(),
      KernelsOf<WeightType::kQ5_1>(), KernelsOf<WeightType::kQ5_K>()};
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

RowInputs PrepareInputs(const RowKernels& kernels, const float* x, int64_t ldx, int64_t batch, int64_t n,
                        uint8_t* room) {
  const int64_t bytes = kernels.input_bytes(n);
  if (bytes == 0) return {reinterpret_cast<const uint8_t*>(x), ldx * static_cast<int64_t>(sizeof(float))};
  for (int64_t b = 0; b < batch; ++b) kernels.prepare(x + b * ldx, n, room + b * bytes);
  return {room, bytes};
}

int64_t MostInputBytes(int64_t n) { return GetRowKernels(WeightType::kQ4_0).input_bytes(n); }

}  // namespace isotherm::kernels
#endif  // HWY_ONCE
