#include <algorithm>
#include <cmath>
#include <limits>

#include "common/kernels/ops.h"

#undef HWY_TARGET_INCLUDE
// clang-format off: foreach_target.h comes before everything that is compiled for each target.
#define HWY_TARGET_INCLUDE "common/kernels/attend.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// clang-format on
#include "common/kernels/decode-inl.h"
#include "common/kernels/exp-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

// Rows are taken in blocks from row 0 on, whatever the length, so that a sequence's result never depends on
// its company. 16 rows: one vector of scores with AVX-512, and their values of a head stay in the first-level
// cache.
inline constexpr int64_t kRows = 16;

// Heads that share a K and V row are taken at most so many at a time.
inline constexpr int kMaxHeads = 4;

class FloatRow {
 public:
  FloatRow(const uint8_t* row, int64_t head_dim) : row_(reinterpret_cast<const float*>(row)) {}
  HWY_INLINE VF Load(int64_t column) const { return hn::LoadU(DF(), row_ + column); }
  HWY_INLINE VF LoadFirst(int64_t column, int64_t count) const {
    return hn::MaskedLoad(hn::FirstN(DF(), static_cast<size_t>(count)), DF(), row_ + column);
  }

 private:
  const float* row_;
};

class HalfRow {
 public:
  HalfRow(const uint8_t* row, int64_t head_dim) : row_(row) {}
  HWY_INLINE VF Load(int64_t column) const { return LoadHalf(row_ + 2 * column); }
  // The row may end where the cache does, so nothing past it is read.
  HWY_INLINE VF LoadFirst(int64_t column, int64_t count) const {
    return LoadFirstHalves(row_ + 2 * column, 2 * count);
  }

 private:
  const uint8_t* row_;
};

class Q8Row {
 public:
  Q8Row(const uint8_t* row, int64_t head_dim)
      : quants_(reinterpret_cast<const int8_t*>(row)), scales_(row + head_dim) {}
  HWY_INLINE VF Load(int64_t column) const {
    const auto quants = hn::PromoteTo(DI32(), hn::LoadU(DI8(), quants_ + column));
    const float scale = LoadOneHalf(scales_ + column / kBlockColumns * 2);
    return hn::Mul(hn::ConvertTo(DF(), quants), hn::Set(DF(), scale));
  }
  // Never partial: head_dim is a multiple of 32.
  HWY_INLINE VF LoadFirst(int64_t column, int64_t) const { return Load(column); }

 private:
  const int8_t* quants_;
  const uint8_t* scales_;
};

// The query heads of one call that share a KV head, and their running softmax (Milakov and Gimelshein 2018).
template <class Row, int kHeads>
class HeadGroup {
 public:
  HeadGroup(const float* q, float* out, int64_t head_dim, float scale, float* scores)
      : q_(q), out_(out), scores_(scores), head_dim_(head_dim), scale_(scale) {
    std::fill(out, out + kHeads * head_dim, 0.0f);
    std::fill(max_, max_ + kHeads, -std::numeric_limits<float>::infinity());
  }

  HWY_INLINE void AddRows(const uint8_t* const* k, const uint8_t* const* v, int64_t count) {
    std::fill(scores_, scores_ + kHeads * kRows, -std::numeric_limits<float>::infinity());
    for (int64_t t = 0; t < count; ++t) Score(Row(k[t], head_dim_), t);
    for (int h = 0; h < kHeads; ++h) Exponentiate(h);
    int64_t column = 0;
    for (; column + LanesF() <= head_dim_; column += LanesF()) AddValues<false>(v, count, column);
    if (column < head_dim_) AddValues<true>(v, count, column);
  }

  HWY_INLINE void Finish() {
    for (int h = 0; h < kHeads; ++h) {
      const float inverse = 1.0f / sum_[h];
      for (int64_t i = 0; i < head_dim_; ++i) out_[h * head_dim_ + i] *= inverse;
    }
  }

 private:
  HWY_INLINE void Score(const Row& row, int64_t t) {
    const DF d;
    VF sums[kHeads];
    HWY_UNROLL(4)
    for (int h = 0; h < kHeads; ++h) sums[h] = hn::Zero(d);
    int64_t column = 0;
    for (; column + LanesF() <= head_dim_; column += LanesF()) {
      const VF key = row.Load(column);
      HWY_UNROLL(4)
      for (int h = 0; h < kHeads; ++h) {
        sums[h] = hn::MulAdd(key, hn::LoadU(d, q_ + h * head_dim_ + column), sums[h]);
      }
    }
    if (column < head_dim_) {
      const int64_t left = head_dim_ - column;
      const VF key = row.LoadFirst(column, left);
      const auto first = hn::FirstN(d, static_cast<size_t>(left));
      HWY_UNROLL(4)
      for (int h = 0; h < kHeads; ++h) {
        sums[h] = hn::MulAdd(key, hn::MaskedLoad(first, d, q_ + h * head_dim_ + column), sums[h]);
      }
    }
    HWY_UNROLL(4)
    for (int h = 0; h < kHeads; ++h)
      scores_[h * kRows + t] = hn::GetLane(hn::SumOfLanes(d, sums[h])) * scale_;
  }

  // Turns the scores of head h into weights relative to the largest score so far. A NaN survives into the
  // sum.
  HWY_INLINE void Exponentiate(int h) {
    const DF d;
    float* const scores = scores_ + h * kRows;
    float largest = max_[h];
    for (int64_t t = 0; t < kRows; ++t) largest = std::max(largest, scores[t]);
    shrink_[h] = std::exp(max_[h] - largest);
    max_[h] = largest;
    auto sum = hn::Zero(d);
    for (int64_t t = 0; t < kRows; t += LanesF()) {
      const auto weights = ExpKeepingNaN(d, hn::Sub(hn::LoadU(d, scores + t), hn::Set(d, largest)));
      hn::StoreU(weights, d, scores + t);
      sum = hn::Add(sum, weights);
    }
    sum_[h] = sum_[h] * shrink_[h] + hn::GetLane(hn::SumOfLanes(d, sum));
  }

  template <bool kPartial>
  HWY_INLINE void AddValues(const uint8_t* const* v, int64_t count, int64_t column) {
    const DF d;
    const int64_t left = kPartial ? head_dim_ - column : LanesF();
    const auto first = hn::FirstN(d, static_cast<size_t>(left));
    VF sums[kHeads];
    HWY_UNROLL(4)
    for (int h = 0; h < kHeads; ++h) {
      const float* const from = out_ + h * head_dim_ + column;
      sums[h] =
          hn::Mul(kPartial ? hn::MaskedLoad(first, d, from) : hn::LoadU(d, from), hn::Set(d, shrink_[h]));
    }
    for (int64_t t = 0; t < count; ++t) {
      const Row row(v[t], head_dim_);
      const VF value = kPartial ? row.LoadFirst(column, left) : row.Load(column);
      HWY_UNROLL(4)
      for (int h = 0; h < kHeads; ++h)
        sums[h] = hn::MulAdd(hn::Set(d, scores_[h * kRows + t]), value, sums[h]);
    }
    HWY_UNROLL(4)
    for (int h = 0; h < kHeads; ++h) {
      float* const to = out_ + h * head_dim_ + column;
      kPartial ? hn::BlendedStore(sums[h], first, d, to) : hn::StoreU(sums[h], d, to);
    }
  }

  const float* const q_;
  float* const out_;
  float* const scores_;  // [kHeads, kRows]
  const int64_t head_dim_;
  const float scale_;
  float max_[kHeads];
  float sum_[kHeads] = {};
  float shrink_[kHeads];
};

template <class Row, int kHeads>
void AttendHeads(const PagedKv& kv, const uint32_t* block_table, int64_t length, int64_t kv_head,
                 const float* q, float scale, float* scores, float* out) {
  const int64_t row_bytes = KvRowBytes(kv.type, kv.head_dim);
  HeadGroup<Row, kHeads> group(q, out, kv.head_dim, scale, scores);
  for (int64_t begin = 0; begin < length; begin += kRows) {
    const uint8_t* k[kRows];
    const uint8_t* v[kRows];
    const int64_t count = std::min(kRows, length - begin);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t row = begin + t;
      const int64_t offset = block_table[row / kv.block_size] * kv.block_bytes +
                             (kv_head * kv.block_size + row % kv.block_size) * row_bytes;
      k[t] = kv.k + offset;
      v[t] = kv.v + offset;
    }
    group.AddRows(k, v, count);
  }
  group.Finish();
}

template <class Row>
void AttendRows(const PagedKv& kv, const uint32_t* block_table, int64_t length, const float* q, int64_t heads,
                int64_t first_head, int64_t last_head, float scale, float* scratch, float* out) {
  const int64_t sharing = heads / kv.kv_heads;
  for (int64_t head = first_head; head < last_head;) {
    const int64_t kv_head = head / sharing;
    const int64_t left = std::min(last_head, (kv_head + 1) * sharing) - head;
    const auto attend = left >= kMaxHeads ? &AttendHeads<Row, kMaxHeads>
                        : left >= 2       ? &AttendHeads<Row, 2>
                                          : &AttendHeads<Row, 1>;
    attend(kv, block_table, length, kv_head, q + head * kv.head_dim, scale, scratch,
           out + head * kv.head_dim);
    head += left >= kMaxHeads ? kMaxHeads : left >= 2 ? 2 : 1;
  }
}

void AttendTo(const PagedKv& kv, const uint32_t* block_table, int64_t length, const float* q, int64_t heads,
              int64_t first_head, int64_t last_head, float scale, float* scratch, float* out) {
  const auto attend = kv.type == KvType::kF16    ? &AttendRows<HalfRow>
                      : kv.type == KvType::kQ8_0 ? &AttendRows<Q8Row>
                                                 : &AttendRows<FloatRow>;
  attend(kv, block_table, length, q, heads, first_head, last_head, scale, scratch, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm::kernels {

HWY_EXPORT(AttendTo);

void Attend(const PagedKv& kv, const uint32_t* block_table, int64_t length, const float* q, int64_t heads,
            int64_t first_head, int64_t last_head, float scale, float* scratch, float* out) {
  HWY_DYNAMIC_DISPATCH(AttendTo)
  (kv, block_table, length, q, heads, first_head, last_head, scale, scratch, out);
}

}  // namespace isotherm::kernels
#endif  // HWY_ONCE
