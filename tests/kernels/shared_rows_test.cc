#include "common/kernels/shared_rows.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <vector>

#include "common/kernels/row_kernels.h"
#include "tests/kernels/test_support.h"

namespace isotherm::kernels {
namespace {

using SharedRowsTest = TargetTest;
INSTANTIATE_ON_EVERY_TARGET(SharedRowsTest);

constexpr float kUntouched = 12345.0f;
constexpr int64_t kVectors = 16;

// Rows in any order and more than once, each with a random choice of the vectors.
struct Lists {
  Lists(const RandomRows& from, int64_t count, int64_t most_vectors, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<int32_t> all(most_vectors);
    std::iota(all.begin(), all.end(), 0);
    for (int64_t i = 0; i < count; ++i) {
      rows.push_back(from.row(i * 5 % 7));
      next.push_back(from.row(i % 2));
      std::shuffle(all.begin(), all.end(), random);
      const auto uses = static_cast<int64_t>(random() % (most_vectors + 1));
      vectors.insert(vectors.end(), all.begin(), all.begin() + uses);
      ends.push_back(static_cast<int32_t>(vectors.size()));
    }
  }
  RowUses Uses() const {
    return {static_cast<int64_t>(rows.size()), rows.data(), next.data(), ends.data(), vectors.data()};
  }

  std::vector<const uint8_t*> rows, next;
  std::vector<int32_t> ends, vectors;
};

struct Shape {
  int64_t rows, vectors;
};
constexpr Shape kShapes[] = {{0, 1}, {1, 1}, {3, 2}, {9, 7}, {8, kVectors}, {kMostRowUses, 1}};

TEST_P(SharedRowsTest, ProductsAreBitEqualToThoseOneByOne) {
  for (const WeightType type : kAllTypes) {
    for (const int64_t n : AwkwardColumns(type)) {
      const RandomRows rows(type, 7, n, PackedRowBytes(type, n), 1);
      const int64_t ldx = n + 3;
      const std::vector<float> x = RandomFloats(kVectors * ldx, 2);
      for (const Shape& shape : kShapes) {
        SCOPED_TRACE(testing::Message() << WeightTypeName(type) << " x " << n << ", " << shape.rows);
        const Lists lists(rows, shape.rows, shape.vectors, 3);
        std::vector<float> products(lists.vectors.size() + 1, kUntouched);
        const RowUses uses = lists.Uses();
        const PreparedInputs inputs(GetRowKernels(type), x.data(), ldx, kVectors, n);
        GetSharedRowKernels(type).multiply(uses, inputs, n, products.data());
        for (int64_t i = 0; i < uses.count; ++i) {
          for (int64_t use = uses.Begin(i); use < uses.ends[i]; ++use) {
            const float* const vector = x.data() + uses.vectors[use] * ldx;
            ASSERT_EQ(products[use], Dot(type, uses.rows[i], vector, n)) << i << ", " << use;
          }
        }
        EXPECT_EQ(products.back(), kUntouched);
      }
    }
  }
}

TEST_P(SharedRowsTest, SumsAreBitEqualToRowsAddedOneByOne) {
  for (const WeightType type : kAllTypes) {
    EXPECT_EQ(GetSharedRowKernels(type).add_scaled == nullptr, GetRowKernels(type).rows_together > 1);
    if (GetSharedRowKernels(type).add_scaled == nullptr) continue;
    for (const int64_t n : AwkwardColumns(type)) {
      const RandomRows rows(type, 7, n, PackedRowBytes(type, n), 4);
      const int64_t ldy = n + 3;
      const std::vector<float> before = RandomFloats(kVectors * ldy, 5);
      for (const Shape& shape : kShapes) {
        SCOPED_TRACE(testing::Message() << WeightTypeName(type) << " x " << n << ", " << shape.rows);
        const Lists lists(rows, shape.rows, shape.vectors, 6);
        const std::vector<float> factors = RandomFloats(static_cast<int64_t>(lists.vectors.size()), 7);
        const RowUses uses = lists.Uses();
        std::vector<float> y = before, expected = before;
        GetSharedRowKernels(type).add_scaled(uses, factors.data(), n, y.data(), ldy);
        for (int64_t i = 0; i < uses.count; ++i) {
          const std::vector<const uint8_t*> one(1 + kRowsAhead, uses.rows[i]);
          for (int64_t use = uses.Begin(i); use < uses.ends[i]; ++use) {
            GetRowKernels(type).add_scaled(one.data(), 1, &factors[use], n,
                                           expected.data() + uses.vectors[use] * ldy);
          }
        }
        ASSERT_EQ(y, expected);
      }
    }
  }
}

}  // namespace
}  // namespace isotherm::kernels
