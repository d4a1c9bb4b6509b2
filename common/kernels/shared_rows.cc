#include "common/kernels/shared_rows.h"

#include <algorithm>
#include <type_traits>

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

// Products or sums that are computed side by side, of one row with so many vectors or of so many rows with
// one each. With AVX-512 their partial sums fill half of the registers.
inline constexpr int kTile = HWY_TARGET <= HWY_AVX3 ? 4 : 2;

// The columns of a group in one row. While they are computed with, the same columns one group on are asked
// for, of all rows in turn: 8 to 16 rows side by side in pieces of 1 KiB were read at 16 GB/s where whole
// rows one after another gave 12 (one core of a Xeon with AVX-512, F16).
template <WeightType kType>
class Piece {
 public:
  HWY_INLINE void Open(const uint8_t* row, const uint8_t* next, int64_t n, int64_t begin) {
    columns_ = std::min(n - begin, kGroupColumns);
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
  int64_t columns_;
  const uint8_t* ahead_;
  RowDecoder<kType> decoder_;
};

// Calls function(first, number) for [begin, end), kMost at a time; `number` is a constant.
template <int kMost, class Function>
HWY_INLINE void ForEachTile(int64_t begin, int64_t end, const Function& function) {
  for (; begin + kMost <= end; begin += kMost) function(begin, std::integral_constant<int, kMost>());
  if constexpr (kMost > 1) ForEachTile<kMost / 2>(begin, end, function);
}

// Adds the products of a group's columns to the partial sums [kVectors][kStep] of each row. x[r][v] is a
// vector from the group on.
template <int kRows, int kVectors, WeightType kType>
HWY_INLINE void MultiplyPieces(const Piece<kType> (&pieces)[kRows], const float* const (&x)[kRows][kVectors],
                               float* const (&partial)[kRows]) {
  const DF d;
  const int64_t columns = pieces[0].columns();
  VF sums[kRows][kVectors][kSums];
  HWY_UNROLL(4)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      HWY_UNROLL(4)
      for (int s = 0; s < kSums; ++s) sums[r][v][s] = hn::Load(d, partial[r] + v * kStep + s * LanesF());
    }
  }
  int64_t column = 0;
  for (; column + kStep <= columns; column += kStep) {
    HWY_UNROLL(4)
    for (int r = 0; r < kRows; ++r) {
      pieces[r].AskAhead(column);
      HWY_UNROLL(4)
      for (int64_t s = 0; s < kSums; ++s) {
        const VF weights = pieces[r].Decode(column, s * LanesF());
        HWY_UNROLL(4)
        for (int v = 0; v < kVectors; ++v) {
          const VF values = hn::LoadU(d, x[r][v] + column + s * LanesF());
          sums[r][v][s] = hn::MulAdd(weights, values, sums[r][v][s]);
        }
      }
    }
  }
  HWY_UNROLL(4)
  for (int64_t s = 0; s < kSums; ++s) {
    const int64_t left = columns - column - s * LanesF();
    if (left <= 0) break;
    const auto valid = hn::FirstN(d, static_cast<size_t>(left));
    HWY_UNROLL(4)
    for (int r = 0; r < kRows; ++r) {
      const VF weights = pieces[r].Decode(column, s * LanesF());
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        const VF values = hn::MaskedLoad(valid, d, x[r][v] + column + s * LanesF());
        sums[r][v][s] = hn::MulAdd(weights, values, sums[r][v][s]);
      }
    }
  }
  HWY_UNROLL(4)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      HWY_UNROLL(4)
      for (int s = 0; s < kSums; ++s) hn::Store(sums[r][v][s], d, partial[r] + v * kStep + s * LanesF());
    }
  }
}

// The products of a group's columns: first of the rows with one use, of which most have different vectors,
// side by side.
template <WeightType kType>
class GroupProducts {
 public:
  GroupProducts(const RowUses& uses, const float* x, int64_t ldx, int64_t n, float* partial)
      : uses_(uses), x_(x), ldx_(ldx), n_(n), partial_(partial) {
    for (int64_t i = 0; i < uses.count; ++i) {
      if (uses.ends[i] - uses.Begin(i) == 1) singles_[num_singles_++] = static_cast<int32_t>(i);
    }
  }

  void Add(int64_t begin) const {
    ForEachTile<kTile>(0, num_singles_, [&](int64_t first, auto rows) { AddSingles<rows>(first, begin); });
    if (num_singles_ == uses_.count) return;
    for (int64_t i = 0; i < uses_.count; ++i) {
      if (uses_.ends[i] - uses_.Begin(i) != 1) AddRow(i, begin);
    }
  }

 private:
  const float* X(int64_t use, int64_t begin) const { return x_ + uses_.vectors[use] * ldx_ + begin; }

  template <int kRows>
  void AddSingles(int64_t first, int64_t begin) const {
    Piece<kType> pieces[kRows];
    const float* x[kRows][1];
    float* partial[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t i = singles_[first + r];
      pieces[r].Open(uses_.rows[i], uses_.next[i], n_, begin);
      pieces[r].Enter(begin);
      x[r][0] = X(uses_.Begin(i), begin);
      partial[r] = partial_ + uses_.Begin(i) * kStep;
    }
    MultiplyPieces(pieces, x, partial);
  }

  void AddRow(int64_t i, int64_t begin) const {
    Piece<kType> piece[1];
    piece[0].Open(uses_.rows[i], uses_.next[i], n_, begin);
    piece[0].Enter(begin);
    ForEachTile<kTile>(uses_.Begin(i), uses_.ends[i], [&](int64_t use, auto vectors) {
      const float* x[1][vectors];
      for (int v = 0; v < vectors; ++v) x[0][v] = X(use + v, begin);
      float* const partial[1] = {partial_ + use * kStep};
      MultiplyPieces(piece, x, partial);
    });
  }

  const RowUses& uses_;
  const float* const x_;
  const int64_t ldx_;
  const int64_t n_;
  float* const partial_;  // [uses, kStep]
  int64_t num_singles_ = 0;
  int32_t singles_[kMostRowUses];
};

template <WeightType kType>
void MultiplyInGroups(const RowUses& uses, const float* x, int64_t ldx, int64_t n, float* products) {
  const int64_t num_uses = uses.Begin(uses.count);
  HWY_ALIGN float partial[kMostRowUses * kStep];
  std::fill_n(partial, num_uses * kStep, 0.0f);
  const GroupProducts<kType> group(uses, x, ldx, n, partial);
  for (int64_t begin = 0; begin < n; begin += kGroupColumns) group.Add(begin);
  for (int64_t use = 0; use < num_uses; ++use) {
    VF sums[kSums];
    for (int64_t s = 0; s < kSums; ++s) sums[s] = hn::Load(DF(), partial + use * kStep + s * LanesF());
    products[use] = Total(sums);
  }
}

// Products in integers, which are made of whole rows.
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
    MultiplyInGroups<kType>(uses, x, ldx, n, products);
  }
}

// Adds the scaled weights of a group's columns, one row's after the other's; y is from the group on.
template <int kRows, WeightType kType>
HWY_INLINE void AddPieces(const Piece<kType> (&pieces)[kRows], const VF (&factors)[kRows], float* y) {
  const DF d;
  const int64_t columns = pieces[0].columns();
  int64_t column = 0;
  for (; column + kStep <= columns; column += kStep) {
    HWY_UNROLL(4)
    for (int r = 0; r < kRows; ++r) pieces[r].AskAhead(column);
    HWY_UNROLL(4)
    for (int64_t s = 0; s < kSums; ++s) {
      float* const to = y + column + s * LanesF();
      VF sum = hn::LoadU(d, to);
      HWY_UNROLL(4)
      for (int r = 0; r < kRows; ++r) sum = pieces[r].AddScaled(column, s * LanesF(), factors[r], sum);
      hn::StoreU(sum, d, to);
    }
  }
  HWY_UNROLL(4)
  for (int64_t s = 0; s < kSums; ++s) {
    float* const to = y + column + s * LanesF();
    const int64_t left = columns - column - s * LanesF();
    if (left <= 0) break;
    const auto valid = hn::FirstN(d, static_cast<size_t>(left));
    VF sum = hn::MaskedLoad(valid, d, to);
    HWY_UNROLL(4)
    for (int r = 0; r < kRows; ++r) sum = pieces[r].AddScaled(column, s * LanesF(), factors[r], sum);
    hn::BlendedStore(sum, valid, d, to);
  }
}

// The group's columns of kRows uses, which add to the same vector: of rows from `row` on that have no other.
template <int kRows, WeightType kType>
HWY_INLINE void AddUses(const RowUses& uses, int64_t row, int64_t use, const float* factors, int64_t n,
                        int64_t begin, float* y) {
  Piece<kType> pieces[kRows];
  VF scales[kRows];
  for (int r = 0; r < kRows; ++r) {
    scales[r] = hn::Set(DF(), factors[use + r]);
    pieces[r].Open(uses.rows[row + r], uses.next[row + r], n, begin);
    pieces[r].Enter(begin, scales[r]);
  }
  AddPieces(pieces, scales, y + begin);
}

// Whether kTile rows from `row` on have one use each, by the same vector.
HWY_INLINE bool ShareAVector(const RowUses& uses, int64_t row) {
  if (row + kTile > uses.count) return false;
  const int64_t use = uses.Begin(row);
  for (int i = 0; i < kTile; ++i) {
    if (uses.ends[row + i] != use + i + 1 || uses.vectors[use + i] != uses.vectors[use]) return false;
  }
  return true;
}

template <WeightType kType>
void AddScaledShared(const RowUses& uses, const float* factors, int64_t n, float* y, int64_t ldy) {
  for (int64_t begin = 0; begin < n; begin += kGroupColumns) {
    for (int64_t i = 0; i < uses.count;) {
      const auto to = [&](int64_t use) { return y + uses.vectors[use] * ldy; };
      if (ShareAVector(uses, i)) {
        AddUses<kTile, kType>(uses, i, uses.Begin(i), factors, n, begin, to(uses.Begin(i)));
        i += kTile;
        continue;
      }
      for (int64_t use = uses.Begin(i); use < uses.ends[i]; ++use) {
        AddUses<1, kType>(uses, i, use, factors, n, begin, to(use));
      }
      ++i;
    }
  }
}

template <WeightType kType>
constexpr SharedRowKernels SharedKernelsOf() {
  if constexpr (kType == WeightType::kQ4_0) {
    return {MultiplyShared<kType>, nullptr};
  } else {
    return {MultiplyShared<kType>, AddScaledShared<kType>};
  }
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
