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

// Asks for memory while kRows rows are being computed with, into the second level: the first would lose lines
// it needs.
//
// Rows of whole floats, which mostly have pages of their own, are asked for side by side shortly before they
// are read: 768 bytes ahead gave 30.4 GB/s where none gave 27.7 and a plain read 31.8 (four rows of F16 on 2
// cores of a Xeon with AVX-512; 512 to 1024 are as good). Rows of blocks share pages and want to be asked for
// earlier: the next rows, one after another. Where they begin is settled once for each group, which left Q4_0
// 10 % more speed than at each step.
template <WeightType kType, int kRows>
class ReadAhead {
 public:
  HWY_INLINE ReadAhead(const uint8_t* const* rows, const uint8_t* const* next, int64_t n)
      : rows_(rows),
        next_(next),
        row_bytes_(RowDecoder<kType>::AheadBytes(n)),
        position_(std::min(kDistance, row_bytes_)) {}

  // The group from column `begin` on comes next.
  HWY_INLINE void Enter(int64_t begin) {
    if constexpr (!kSideBySide) {
      const int64_t passed = kRows * RowDecoder<kType>::AheadBytes(begin);
      from_ = next_[passed / row_bytes_] + passed % row_bytes_;
    }
  }

  // Once for each step of kSums vectors.
  HWY_INLINE void Advance() {
    constexpr int64_t kStepBytes = RowDecoder<kType>::AheadBytes(kSums * LanesF());
    if constexpr (kSideBySide) {
      if (position_ >= row_bytes_) {
        rows_ = next_;
        position_ = 0;
      }
      HWY_UNROLL(4)
      for (int r = 0; r < kRows; ++r) Ask<kStepBytes>(rows_[r] + position_);
      position_ += kStepBytes;
    } else {
      Ask<kRows * kStepBytes>(from_);
      from_ += kRows * kStepBytes;
    }
  }

 private:
  static constexpr bool kSideBySide = RowDecoder<kType>::AheadBytes(kBlockColumns) >= 2 * kBlockColumns;
  static constexpr int64_t kDistance = 768;

  template <int64_t kBytes>
  static HWY_INLINE void Ask(const uint8_t* from) {
    HWY_UNROLL(4)
    for (int64_t i = 0; i < kBytes; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T1);
    }
  }

  const uint8_t* const* rows_;
  const uint8_t* const* next_;
  const int64_t row_bytes_;
  int64_t position_;               // side by side
  const uint8_t* from_ = nullptr;  // one after another
};

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

// y[v * ldy + r] = rows[r] . x[v] for one tile; `next` are as many rows that follow it.
template <WeightType kType, int kRows, int kVectors>
void MultiplyTile(const uint8_t* const* rows, const uint8_t* const* next, const float* x, int64_t ldx,
                  int64_t n, float* y, int64_t ldy) {
  constexpr int64_t kStep = kSums * LanesF();
  const DF d;
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
      ahead.Advance();
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
  MultiplyTile<kType, 1, 1>(&row, &row, x, 0, n, &sum, 0);
  return sum;
}

// Listed rows with kVectors vectors, kRows at a time. Entries of the list past `num_rows`, kTile of them, are
// rows that are read afterwards.
template <WeightType kType, int kRows, int kVectors>
void MultiplyRows(const uint8_t* const* rows, int64_t num_rows, const float* x, int64_t ldx, int64_t n,
                  float* y, int64_t ldy) {
  int64_t r = 0;
  for (; r + kRows <= num_rows; r += kRows) {
    MultiplyTile<kType, kRows, kVectors>(rows + r, rows + r + kRows, x, ldx, n, y + r, ldy);
  }
  if constexpr (kRows > 1) {
    MultiplyRows<kType, kRows / 2, kVectors>(rows + r, num_rows - r, x, ldx, n, y + r, ldy);
  }
}

template <WeightType kType>
void MatMulListed(const uint8_t* const* rows, int64_t num_rows, const float* x, int64_t ldx, int64_t batch,
                  int64_t n, float* y, int64_t ldy) {
  static_assert(kTile <= kRowsAhead);
  int64_t b = 0;
  for (; b + 2 <= batch; b += 2) {
    MultiplyRows<kType, kTile / 2, 2>(rows, num_rows, x + b * ldx, ldx, n, y + b * ldy, ldy);
  }
  if (b < batch) MultiplyRows<kType, kTile, 1>(rows, num_rows, x + b * ldx, ldx, n, y + b * ldy, ldy);
}

// Rows that stay in the second-level cache, with room to spare, while the vectors of a batch pass by.
inline constexpr int64_t kCachedBytes = 128 << 10;

template <WeightType kType>
void MatMul(const uint8_t* rows, int64_t stride, int64_t num_rows, const float* x, int64_t ldx, int64_t batch,
            int64_t n, float* y, int64_t ldy) {
  constexpr int64_t kMostListed = 256;
  const int64_t cached = kCachedBytes / std::max<int64_t>(stride, 1) / kTile * kTile;
  const int64_t block_rows = std::clamp<int64_t>(cached, kTile, kMostListed);
  const uint8_t* list[kMostListed + kRowsAhead];
  for (int64_t first = 0; first < num_rows; first += block_rows) {
    const int64_t count = std::min(block_rows, num_rows - first);
    // After the last row nothing follows; it asks for itself, which costs nothing.
    for (int64_t r = 0; r < count + kRowsAhead; ++r) {
      list[r] = rows + std::min(first + r, num_rows - 1) * stride;
    }
    MatMulListed<kType>(list, count, x, ldx, batch, n, y + first, ldy);
  }
}

// Where columns of a row lie: quants (or whole floats), and behind all of them the scales where a type keeps
// them apart.
template <WeightType kType>
struct ColumnBytes {
  static constexpr int64_t Scales(int64_t columns) {
    return RowDecoder<kType>::kScalesApart ? columns / kBlockColumns * 2 : 0;
  }
  static constexpr int64_t Quants(int64_t columns) {
    return RowDecoder<kType>::AheadBytes(columns) - Scales(columns);
  }
};

inline constexpr int64_t kLine = 64;

HWY_INLINE void Prefetch(const uint8_t* from) {
  _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T1);
}

HWY_INLINE void PrefetchBytes(const uint8_t* begin, const uint8_t* end) {
  const uint8_t* line = begin - reinterpret_cast<uintptr_t>(begin) % kLine;
  for (; line < end; line += kLine) Prefetch(line);
}

template <WeightType kType>
void PrefetchColumns(const uint8_t* row, int64_t n, int64_t begin, int64_t end) {
  using Bytes = ColumnBytes<kType>;
  PrefetchBytes(row + Bytes::Quants(begin), row + Bytes::Quants(end));
  const uint8_t* const scales = row + Bytes::Quants(n);
  PrefetchBytes(scales + Bytes::Scales(begin), scales + Bytes::Scales(end));
}

// Asks for columns that are computed with later, while the same columns of kRows rows are computed with now:
// those of the rows two tiles on, as pieces of rows may be too short to be asked for within themselves.
template <WeightType kType, int kRows>
class PiecesAhead {
 public:
  HWY_INLINE PiecesAhead(const uint8_t* const* rows, int64_t n) : rows_(rows), scales_(Bytes::Quants(n)) {}

  HWY_INLINE void Enter(int64_t begin) {
    group_ = Bytes::Quants(begin);
    position_ = 0;
    if constexpr (Bytes::Scales(kGroupColumns) > 0) {
      HWY_UNROLL(4)
      for (int r = 0; r < kRows; ++r) Prefetch(rows_[r] + scales_ + Bytes::Scales(begin));
    }
  }

  // Once for each step of kSums vectors.
  HWY_INLINE void Advance() {
    constexpr int64_t kStepBytes = Bytes::Quants(kSums * LanesF());
    if constexpr (kStepBytes >= kLine) {
      HWY_UNROLL(4)
      for (int r = 0; r < kRows; ++r) {
        HWY_UNROLL(4)
        for (int64_t i = 0; i < kStepBytes; i += kLine) Prefetch(rows_[r] + group_ + position_ + i);
      }
      position_ += kStepBytes;
    } else {
      // The rows in turn, a whole line each.
      for (int64_t end = position_ + kRows * kStepBytes; position_ < end; position_ += kLine) {
        Prefetch(rows_[position_ / kLine % kRows] + group_ + position_ / (kLine * kRows) * kLine);
      }
    }
  }

 private:
  using Bytes = ColumnBytes<kType>;

  const uint8_t* const* rows_;
  const int64_t scales_;  // where they begin
  int64_t group_ = 0;     // the bytes asked for begin here
  int64_t position_ = 0;
};

// y[i] = source.Update(row's weights at first + i, y[i]) for columns [first, last); `source` decodes.
template <class Source>
HWY_INLINE void UpdateWith(int64_t first, int64_t last, Source& source, float* y) {
  constexpr int64_t kStep = kSums * LanesF();
  const DF d;
  for (int64_t begin = first; begin < last; begin += kGroupColumns) {
    const int64_t count = std::min(last - begin, kGroupColumns);
    source.Enter(begin, begin + count);
    int64_t column = 0;
    for (; column + kStep <= count; column += kStep) {
      source.Advance();
      HWY_UNROLL(4)
      for (int64_t s = 0; s < kSums; ++s) {
        float* const to = y + begin - first + column + s * LanesF();
        hn::StoreU(source.Update(column, s * LanesF(), hn::LoadU(d, to)), d, to);
      }
    }
    HWY_UNROLL(4)
    for (int64_t s = 0; s < kSums; ++s) {
      const int64_t offset = s * LanesF();
      if (column + offset >= count) break;
      float* const to = y + begin - first + column + offset;
      const auto valid = hn::FirstN(d, static_cast<size_t>(count - column - offset));
      hn::BlendedStore(source.Update(column, offset, hn::MaskedLoad(valid, d, to)), valid, d, to);
    }
  }
}

// old + factor[0] * rows[0] + factor[1] * rows[1] ..., added in this order. Ahead: ReadAhead or PiecesAhead.
template <WeightType kType, int kRows, class Ahead>
class ScaledRows {
 public:
  HWY_INLINE ScaledRows(const uint8_t* const* rows, const float* factors, int64_t n, const Ahead& ahead)
      : ahead_(ahead) {
    for (int r = 0; r < kRows; ++r) {
      decoders_[r].Open(rows[r], n);
      factors_[r] = hn::Set(DF(), factors[r]);
    }
  }
  HWY_INLINE void Enter(int64_t begin, int64_t end) {
    for (int r = 0; r < kRows; ++r) decoders_[r].Enter(begin, end);
    ahead_.Enter(begin);
  }
  HWY_INLINE void Advance() { ahead_.Advance(); }
  HWY_INLINE VF Update(int64_t column, int64_t offset, VF sum) const {
    HWY_UNROLL(4)
    for (int r = 0; r < kRows; ++r) sum = hn::MulAdd(factors_[r], decoders_[r].Decode(column, offset), sum);
    return sum;
  }

 private:
  RowDecoder<kType> decoders_[kRows];
  VF factors_[kRows];
  Ahead ahead_;
};

template <WeightType kType, int kRows = kTile>
void AddScaledRows(const uint8_t* const* rows, int64_t num_rows, const float* factors, int64_t n,
                   int64_t begin, int64_t end, float* y) {
  using Whole = ReadAhead<kType, kRows>;
  using Pieces = PiecesAhead<kType, kRows>;
  int64_t r = 0;
  for (; r + kRows <= num_rows; r += kRows) {
    if (end - begin == n) {
      ScaledRows<kType, kRows, Whole> source(rows + r, factors + r, n, Whole(rows + r, rows + r + kRows, n));
      UpdateWith(0, n, source, y);
    } else {
      ScaledRows<kType, kRows, Pieces> source(rows + r, factors + r, n, Pieces(rows + r + kRowsAhead, n));
      UpdateWith(begin, end, source, y);
    }
  }
  if constexpr (kRows > 1) {
    AddScaledRows<kType, kRows / 2>(rows + r, num_rows - r, factors + r, n, begin, end, y);
  }
}

template <WeightType kType>
class Weights {
 public:
  HWY_INLINE Weights(const uint8_t* row, int64_t n) { decoder_.Open(row, n); }
  HWY_INLINE void Enter(int64_t begin, int64_t end) { decoder_.Enter(begin, end); }
  HWY_INLINE void Advance() {}
  HWY_INLINE VF Update(int64_t column, int64_t offset, VF) const { return decoder_.Decode(column, offset); }

 private:
  RowDecoder<kType> decoder_;
};

template <WeightType kType>
void Unpack(const uint8_t* row, int64_t n, float* out) {
  Weights<kType> source(row, n);
  UpdateWith(0, n, source, out);
}

template <WeightType kType>
constexpr RowKernels KernelsOf() {
  return {Dot<kType>,           MatMul<kType>,          MatMulListed<kType>,
          AddScaledRows<kType>, PrefetchColumns<kType>, Unpack<kType>};
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

}  // namespace isotherm::kernels
#endif  // HWY_ONCE
