#include "common/kernels/shared_rows.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
// clang-format off: foreach_target.h comes before everything that is compiled for each target.
#define HWY_TARGET_INCLUDE "common/kernels/shared_rows.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// clang-format on
#include "common/kernels/products-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

inline constexpr int64_t kStep = kSums * LanesF();
// Products computed together; with AVX-512 their partial sums fill half of the first-level cache.
inline constexpr int64_t kMostUses = 2 * kMostRowUses;

// One row, and so many of its vectors that its weights are decoded for at once. With AVX-512 their partial
// sums fill half of the registers.
inline constexpr int kVectorTile = HWY_TARGET <= HWY_AVX3 ? 4 : 2;

// The columns of a group in one row. While they are computed with, the same columns one group on are asked
// for, of all rows in turn: 16 rows side by side in pieces of 1 KiB were read at 16 GB/s where whole rows one
// after another gave 12 (one core of a Xeon with AVX-512, F16).
template <WeightType kType>
class Piece {
 public:
  HWY_INLINE Piece(const uint8_t* row, const uint8_t* next, int64_t n, int64_t begin)
      : columns_(std::min(n - begin, kGroupColumns)) {
    const bool last = begin + columns_ == n;
    const int64_t ahead = last ? 0 : begin + columns_;
    const uint8_t* const from = last ? next : row;
    ahead_ = from + Bytes::Quants(ahead);
    if constexpr (Bytes::Scales(kGroupColumns) > 0) Prefetch(from + Bytes::Quants(n) + Bytes::Scales(ahead));
    decoder_.Open(row, n);
  }
  HWY_INLINE int64_t columns() const { return columns_; }
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const { return decoder_.Decode(column, offset); }
  // Once for each step of kStep columns.
  HWY_INLINE void AskAhead(int64_t column) const {
    const uint8_t* const from = ahead_ + Bytes::Quants(column);
    Prefetch(from);
    for (int64_t i = kLine; i < Bytes::Quants(kStep); i += kLine) Prefetch(from + i);
  }

  // Before Decode, with where the group begins.
  HWY_INLINE void Enter(int64_t begin) { decoder_.Enter(begin, begin + columns_); }
  // Before AddScaled.
  HWY_INLINE void Enter(int64_t begin, VF factor) {
    if constexpr (kScalesApart) {
      decoder_.Enter(begin, begin + columns_, factor);
    } else {
      decoder_.Enter(begin, begin + columns_);
    }
  }
  // sum + factor * weights, rounded as RowKernels::add_scaled does.
  HWY_INLINE VF AddScaled(int64_t column, int64_t offset, VF factor, VF sum) const {
    if constexpr (kScalesApart) {
      return hn::MulAdd(decoder_.Scales(column, offset), decoder_.Quants(column, offset), sum);
    } else {
      return hn::MulAdd(factor, Decode(column, offset), sum);
    }
  }

 private:
  using Bytes = ColumnBytes<kType>;
  static constexpr bool kScalesApart = RowDecoder<kType>::kScalesApart;
  const int64_t columns_;
  const uint8_t* ahead_;
  RowDecoder<kType> decoder_;
};

// Calls use(first, number) for uses [begin, end), kVectors at a time; `number` is a constant.
template <int kVectors, class Use>
HWY_INLINE void ForEachTile(int64_t begin, int64_t end, const Use& use) {
  for (; begin + kVectors <= end; begin += kVectors) use(begin, std::integral_constant<int, kVectors>());
  if constexpr (kVectors > 1) ForEachTile<kVectors / 2>(begin, end, use);
}

// Adds the products of a group's columns to the partial sums; `x` and `vectors` are those of the tile, x from
// the group on.
template <int kVectors, WeightType kType>
HWY_INLINE void MultiplyPiece(const Piece<kType>& piece, const float* x, int64_t ldx, const int32_t* vectors,
                              float* partial) {
  const DF d;
  const float* from[kVectors];
  VF sums[kVectors][kSums];
  HWY_UNROLL(4)
  for (int v = 0; v < kVectors; ++v) {
    from[v] = x + vectors[v] * ldx;
    HWY_UNROLL(4)
    for (int64_t s = 0; s < kSums; ++s) sums[v][s] = hn::Load(d, partial + v * kStep + s * LanesF());
  }
  int64_t column = 0;
  for (; column + kStep <= piece.columns(); column += kStep) {
    piece.AskAhead(column);
    HWY_UNROLL(4)
    for (int64_t s = 0; s < kSums; ++s) {
      const VF weights = piece.Decode(column, s * LanesF());
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        sums[v][s] = hn::MulAdd(weights, hn::LoadU(d, from[v] + column + s * LanesF()), sums[v][s]);
      }
    }
  }
  for (int64_t s = 0; column + s * LanesF() < piece.columns(); ++s) {
    const auto valid = hn::FirstN(d, static_cast<size_t>(piece.columns() - column - s * LanesF()));
    const VF weights = piece.Decode(column, s * LanesF());
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      const VF values = hn::MaskedLoad(valid, d, from[v] + column + s * LanesF());
      sums[v][s] = hn::MulAdd(weights, values, sums[v][s]);
    }
  }
  HWY_UNROLL(4)
  for (int v = 0; v < kVectors; ++v) {
    HWY_UNROLL(4)
    for (int64_t s = 0; s < kSums; ++s) hn::Store(sums[v][s], d, partial + v * kStep + s * LanesF());
  }
}

// Rows [first, last), of at most kMostUses uses.
template <WeightType kType>
void MultiplyRun(const RowUses& uses, int64_t first, int64_t last, const float* x, int64_t ldx, int64_t n,
                 float* products) {
  const DF d;
  const int64_t first_use = uses.Begin(first);
  HWY_ALIGN float partial[kMostUses * kStep];
  std::fill_n(partial, (uses.Begin(last) - first_use) * kStep, 0.0f);
  for (int64_t begin = 0; begin < n; begin += kGroupColumns) {
    for (int64_t i = first; i < last; ++i) {
      Piece<kType> piece(uses.rows[i], uses.next[i], n, begin);
      piece.Enter(begin);
      ForEachTile<kVectorTile>(uses.Begin(i), uses.ends[i], [&](int64_t use, auto vectors) {
        MultiplyPiece<vectors>(piece, x + begin, ldx, uses.vectors + use,
                               partial + (use - first_use) * kStep);
      });
    }
  }
  for (int64_t use = first_use; use < uses.Begin(last); ++use) {
    const float* const from = partial + (use - first_use) * kStep;
    VF sums[kSums];
    for (int64_t s = 0; s < kSums; ++s) sums[s] = hn::Load(d, from + s * LanesF());
    products[use] = Total(sums);
  }
}

// In integers a product is too short for its parts to pay.
template <WeightType kType>
void MultiplyWhole(const RowUses& uses, const RowInputs& inputs, int64_t n, float* products) {
  for (int64_t i = 0; i < uses.count; ++i) {
    const uint8_t* const* const after = i + 1 < uses.count ? uses.rows + i + 1 : uses.next;
    for (int64_t use = uses.Begin(i); use < uses.ends[i]; ++use) {
      Products<kType>::template MultiplyTile<1, 1>(uses.rows + i, after, inputs.From(uses.vectors[use]), n,
                                                   products + use, 0);
    }
  }
}

template <WeightType kType>
void MultiplyShared(const RowUses& uses, const RowInputs& inputs, int64_t n, float* products) {
  if constexpr (kIntegerProducts<kType>) {
    MultiplyWhole<kType>(uses, inputs, n, products);
  } else {
    const auto* const x = reinterpret_cast<const float*>(inputs.data);
    const int64_t ldx = inputs.stride / static_cast<int64_t>(sizeof(float));
    for (int64_t first = 0, last; first < uses.count; first = last) {
      for (last = first + 1; last < uses.count && uses.ends[last] - uses.Begin(first) <= kMostUses;) ++last;
      MultiplyRun<kType>(uses, first, last, x, ldx, n, products);
    }
  }
}

// Adds the scaled weights of a group's columns; y is from the group on.
template <WeightType kType>
HWY_INLINE void AddPiece(const Piece<kType>& piece, VF factor, float* y) {
  const DF d;
  int64_t column = 0;
  for (; column + kStep <= piece.columns(); column += kStep) {
    piece.AskAhead(column);
    HWY_UNROLL(4)
    for (int64_t s = 0; s < kSums; ++s) {
      float* const to = y + column + s * LanesF();
      hn::StoreU(piece.AddScaled(column, s * LanesF(), factor, hn::LoadU(d, to)), d, to);
    }
  }
  for (int64_t offset = 0; column + offset < piece.columns(); offset += LanesF()) {
    float* const to = y + column + offset;
    const auto valid = hn::FirstN(d, static_cast<size_t>(piece.columns() - column - offset));
    const VF sum = piece.AddScaled(column, offset, factor, hn::MaskedLoad(valid, d, to));
    hn::BlendedStore(sum, valid, d, to);
  }
}

template <WeightType kType>
void AddScaledShared(const RowUses& uses, const float* factors, int64_t n, float* y, int64_t ldy) {
  for (int64_t begin = 0; begin < n; begin += kGroupColumns) {
    for (int64_t i = 0; i < uses.count; ++i) {
      Piece<kType> piece(uses.rows[i], uses.next[i], n, begin);
      for (int64_t use = uses.Begin(i); use < uses.ends[i]; ++use) {
        const VF factor = hn::Set(DF(), factors[use]);
        piece.Enter(begin, factor);
        AddPiece(piece, factor, y + uses.vectors[use] * ldy + begin);
      }
    }
  }
}

template <WeightType kType>
constexpr SharedRowKernels SharedKernelsOf() {
  return {MultiplyShared<kType>, AddScaledShared<kType>};
}

const SharedRowKernels* SharedKernelTable() {
  static constexpr SharedRowKernels kTable[] = {
      SharedKernelsOf<WeightType::kF32>(),  SharedKernelsOf<WeightType::kF16>(),
      SharedKernelsOf<WeightType::kBF16>(), SharedKernelsOf<WeightType::kQ8_0>(),
      SharedKernelsOf<WeightType::kQ4_0>(), SharedKernelsOf<WeightType::kQ4_K>(),
      SharedKernelsOf<WeightType::kQ6_K>(), SharedKernelsOf<WeightType::kQ4_1>(),
      SharedKernelsOf<WeightType::kQ5_0>(), SharedKernelsOf<WeightType::kQ5_1>(),
      SharedKernelsOf<WeightType::kQ5_K>()};
  return kTable;
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm::kernels {

HWY_EXPORT(SharedKernelTable);

const SharedRowKernels& GetSharedRowKernels(WeightType type) {
  return HWY_DYNAMIC_DISPATCH(SharedKernelTable)()[static_cast<int>(type)];
}

}  // namespace isotherm::kernels
#endif  // HWY_ONCE
