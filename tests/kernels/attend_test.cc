#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "common/kernels/ops.h"
#include "common/kernels/tolerance.h"
#include "tests/kernels/test_support.h"

namespace isotherm::kernels {
namespace {

using AttendTest = TargetTest;
INSTANTIATE_ON_EVERY_TARGET(AttendTest);

struct Shape {
  KvType type;
  int64_t heads, kv_heads, head_dim, block_size;
};

constexpr Shape kShapes[] = {{KvType::kF16, 4, 4, 16, 16},  {KvType::kF16, 8, 1, 64, 16},
                             {KvType::kF16, 6, 2, 80, 8},   {KvType::kF16, 3, 3, 20, 5},
                             {KvType::kF16, 7, 1, 128, 32}, {KvType::kQ8_0, 4, 2, 32, 16},
                             {KvType::kQ8_0, 5, 1, 96, 7},  {KvType::kQ8_0, 2, 2, 128, 16},
                             {KvType::kF32, 4, 2, 64, 16},  {KvType::kF32, 2, 1, 20, 3}};

// The weights type that rounds as the cache does.
WeightType RowType(KvType type) {
  return type == KvType::kF16    ? WeightType::kF16
         : type == KvType::kQ8_0 ? WeightType::kQ8_0
                                 : WeightType::kF32;
}

std::string Name(const Shape& shape) {
  return WeightTypeName(RowType(shape.type)) + std::string(" ") + std::to_string(shape.heads) + "/" +
         std::to_string(shape.kv_heads) + " x " + std::to_string(shape.head_dim);
}

// A cache with shuffled blocks that holds `length` random rows, and the rows as stored.
class Cache {
 public:
  Cache(const Shape& shape, int64_t length, float magnitude = 1.0f)
      : shape_(shape),
        block_bytes_(shape.kv_heads * shape.block_size * KvRowBytes(shape.type, shape.head_dim)),
        blocks_((length + shape.block_size - 1) / shape.block_size),
        k_memory_(blocks_ * block_bytes_),
        v_memory_(blocks_ * block_bytes_),
        table_(blocks_) {
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), std::mt19937(1));
    view_ = {k_memory_.data(), v_memory_.data(), shape.type,  shape.kv_heads,
             shape.head_dim,   shape.block_size, block_bytes_};
    for (int64_t t = 0; t < length; ++t) {
      std::vector<float> k = RandomFloats(shape.kv_heads * shape.head_dim, 100 + t);
      for (float& value : k) value *= magnitude;
      const std::vector<float> v = RandomFloats(shape.kv_heads * shape.head_dim, 10000 + t);
      WriteKv(view_, table_.data(), t, k.data(), v.data());
      k_.push_back(Stored(k));
      v_.push_back(Stored(v));
    }
  }

  const PagedKv& view() const { return view_; }
  const uint32_t* table() const { return table_.data(); }
  double K(int64_t t, int64_t kv_head, int64_t i) const { return k_[t][kv_head * shape_.head_dim + i]; }
  double V(int64_t t, int64_t kv_head, int64_t i) const { return v_[t][kv_head * shape_.head_dim + i]; }

 private:
  std::vector<float> Stored(const std::vector<float>& values) const {
    const WeightType type = RowType(shape_.type);
    std::vector<float> stored(values.size());
    Bytes packed(PackedRowBytes(type, shape_.head_dim));
    for (int64_t head = 0; head < shape_.kv_heads; ++head) {
      PackFloatRow(type, values.data() + head * shape_.head_dim, shape_.head_dim, packed.data());
      UnpackRow(type, packed.data(), shape_.head_dim, stored.data() + head * shape_.head_dim);
    }
    return stored;
  }

  Shape shape_;
  int64_t block_bytes_;
  int64_t blocks_;
  Bytes k_memory_;
  Bytes v_memory_;
  std::vector<uint32_t> table_;
  PagedKv view_;
  std::vector<std::vector<float>> k_;
  std::vector<std::vector<float>> v_;
};

std::vector<float> AttendWith(const Shape& shape, const Cache& cache, int64_t length,
                              const std::vector<float>& q, int64_t first, int64_t last, float scale) {
  std::vector<float> out(shape.heads * shape.head_dim, NAN);
  std::vector<float> scratch(64);
  Attend(cache.view(), cache.table(), length, q.data(), shape.heads, first, last, scale, scratch.data(),
         out.data());
  return out;
}

// softmax(q . K^T * scale) . V of one head in F64.
std::vector<double> Reference(const Shape& shape, const Cache& cache, int64_t length, const float* q,
                              int64_t kv_head, double scale) {
  std::vector<double> weights(length);
  for (int64_t t = 0; t < length; ++t) {
    for (int64_t i = 0; i < shape.head_dim; ++i) weights[t] += q[i] * cache.K(t, kv_head, i);
    weights[t] *= scale;
  }
  const double largest = *std::max_element(weights.begin(), weights.end());
  double sum = 0;
  for (double& weight : weights) sum += weight = std::exp(weight - largest);
  std::vector<double> out(shape.head_dim, 0.0);
  for (int64_t t = 0; t < length; ++t) {
    for (int64_t i = 0; i < shape.head_dim; ++i) out[i] += weights[t] / sum * cache.V(t, kv_head, i);
  }
  return out;
}

TEST_P(AttendTest, IsWithinToleranceForEveryShapeAndLength) {
  for (const Shape& shape : kShapes) {
    for (const int64_t length : {1, 2, 15, 16, 17, 33, 100, 257}) {
      SCOPED_TRACE(Name(shape) + " at " + std::to_string(length));
      const Cache cache(shape, length);
      const std::vector<float> q = RandomFloats(shape.heads * shape.head_dim, 2);
      const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
      const std::vector<float> out = AttendWith(shape, cache, length, q, 0, shape.heads, scale);
      for (int64_t head = 0; head < shape.heads; ++head) {
        const float* const head_q = q.data() + head * shape.head_dim;
        const std::vector<double> exact =
            Reference(shape, cache, length, head_q, head / (shape.heads / shape.kv_heads), scale);
        // A score's error of e moves a weight by a factor of exp(e); values are of magnitude 1 to 4.
        const double score_error = DotTolerance(shape.head_dim, Norm(head_q, shape.head_dim), 1.5);
        const double bound = 4 * (score_error + DotTolerance(length, 1, 1));
        for (int64_t i = 0; i < shape.head_dim; ++i) {
          ASSERT_TRUE(Within(out[head * shape.head_dim + i], exact[i], bound)) << head << ", " << i;
        }
      }
    }
  }
}

// Heads may be spread over threads in any way.
TEST_P(AttendTest, AHeadIsBitEqualWhicheverHeadsItIsComputedWith) {
  constexpr int64_t kLength = 50;
  for (const Shape& shape : kShapes) {
    const Cache cache(shape, kLength);
    const std::vector<float> q = RandomFloats(shape.heads * shape.head_dim, 3);
    const std::vector<float> all = AttendWith(shape, cache, kLength, q, 0, shape.heads, 0.125f);
    for (int64_t first = 0; first < shape.heads; ++first) {
      for (int64_t last = first; last <= shape.heads; ++last) {
        const std::vector<float> some = AttendWith(shape, cache, kLength, q, first, last, 0.125f);
        for (int64_t i = 0; i < shape.heads * shape.head_dim; ++i) {
          const int64_t head = i / shape.head_dim;
          if (head >= first && head < last) {
            ASSERT_EQ(some[i], all[i]) << Name(shape) << " " << first << ".." << last << ": " << i;
          } else {
            ASSERT_TRUE(std::isnan(some[i]));
          }
        }
      }
    }
  }
}

TEST_P(AttendTest, LargeScoresNeitherOverflowNorVanish) {
  const Shape shape = kShapes[1];
  constexpr int64_t kLength = 40;
  const Cache cache(shape, kLength, 1000.0f);
  const std::vector<float> q = RandomFloats(shape.heads * shape.head_dim, 4);
  const std::vector<float> out = AttendWith(shape, cache, kLength, q, 0, shape.heads, 1.0f);
  const std::vector<double> exact = Reference(shape, cache, kLength, q.data(), 0, 1.0);
  for (int64_t i = 0; i < shape.head_dim; ++i) EXPECT_NEAR(out[i], exact[i], 1e-2);
}

TEST_P(AttendTest, NaNInOneKeyIsNotHidden) {
  const Shape shape = kShapes[1];
  const Cache cache(shape, 20);
  std::vector<float> k(shape.kv_heads * shape.head_dim, NAN);
  WriteKv(cache.view(), cache.table(), 7, k.data(), k.data());
  const std::vector<float> q = RandomFloats(shape.heads * shape.head_dim, 5);
  for (const float value : AttendWith(shape, cache, 20, q, 0, shape.heads, 0.125f))
    EXPECT_TRUE(std::isnan(value));
}

TEST(Kv, RowBytes) {
  EXPECT_EQ(KvRowBytes(KvType::kF16, 64), 128);
  EXPECT_EQ(KvRowBytes(KvType::kQ8_0, 64), 68);
  EXPECT_EQ(KvRowBytes(KvType::kF32, 64), 256);
}

}  // namespace
}  // namespace isotherm::kernels
