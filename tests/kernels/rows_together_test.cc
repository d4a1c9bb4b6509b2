#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/kernels/row_kernels.h"
#include "common/kernels/tolerance.h"
#include "tests/kernels/test_support.h"

// RowKernels::add_scaled for the types whose rows are rounded together.
namespace isotherm::kernels {
namespace {

using RowsTogetherTest = TargetTest;
INSTANTIATE_ON_EVERY_TARGET(RowsTogetherTest);

constexpr float kUntouched = 12345.0f;
constexpr int64_t kBlockColumns = 32;

std::vector<WeightType> TypesAddedTogether() {
  std::vector<WeightType> types;
  for (const WeightType type : kAllTypes) {
    if (GetRowKernels(type).rows_together > 1) types.push_back(type);
  }
  return types;
}

// Sums of some of the rows, each with its factor.
struct Terms {
  void Add(const std::vector<double>& row, float factor) {
    rows.push_back(&row);
    factors.push_back(factor);
  }

  double Exact(int64_t column) const {
    double sum = 0;
    for (size_t r = 0; r < rows.size(); ++r) sum += static_cast<double>(factors[r]) * (*rows[r])[column];
    return sum;
  }
  double Bound(WeightType type, int64_t column) const {
    double weights = 0, most = 0;
    const int64_t block = column / kBlockColumns * kBlockColumns;
    for (size_t r = 0; r < rows.size(); ++r) {
      weights += (*rows[r])[column] * (*rows[r])[column];
      for (int64_t c = block; c < block + kBlockColumns; ++c) {
        most = std::max(most, std::abs(factors[r] * (*rows[r])[c]));
      }
    }
    const auto count = static_cast<int64_t>(rows.size());
    const double dot = DotTolerance(count, Norm(factors.data(), count), std::sqrt(weights));
    // Where the largest factor * scale is below 2^-100, the sum is 0.
    return dot + SumTolerance(type, count, most) + 64 * 0x1p-100;
  }

  std::vector<const std::vector<double>*> rows;
  std::vector<float> factors;
};

// `count` rows from `first` on, then any.
std::vector<const uint8_t*> List(const RandomRows& rows, int64_t first, int64_t count) {
  std::vector<const uint8_t*> list;
  for (int64_t r = 0; r < count; ++r) list.push_back(rows.row(first + r));
  for (int64_t r = 0; r < kRowsAhead; ++r) list.push_back(rows.row(r));
  return list;
}

TEST_P(RowsTogetherTest, OnlyTheRowsOfQ40) {
  EXPECT_EQ(TypesAddedTogether(), std::vector<WeightType>{WeightType::kQ4_0});
}

TEST_P(RowsTogetherTest, AreAddedWithinToleranceAndNoMoreIsWritten) {
  for (const WeightType type : TypesAddedTogether()) {
    const RowKernels& kernels = GetRowKernels(type);
    const int64_t most = kernels.rows_together;
    for (const int64_t n : AwkwardColumns(type)) {
      const RandomRows rows(type, 2 * most, n, PackedRowBytes(type, n), 1);
      const std::vector<float> factors = RandomFloats(2 * most, 2);
      for (int64_t count = 0; count <= most; ++count) {
        SCOPED_TRACE(testing::Message() << WeightTypeName(type) << " x " << n << ", " << count << " rows");
        const int64_t shift = count % 4;
        std::vector<float> sums(shift + n + 1, kUntouched);
        std::fill_n(sums.begin() + shift, n, 0.0f);
        Terms terms;
        for (const int64_t first : {int64_t{0}, most}) {
          kernels.add_scaled(List(rows, first, count).data(), count, &factors[first], n, sums.data() + shift);
          for (int64_t r = first; r < first + count; ++r) terms.Add(rows.values[r], factors[r]);
        }
        kernels.order_sums(n, sums.data() + shift);
        for (int64_t i = 0; i < n; ++i) {
          ASSERT_TRUE(Within(sums[shift + i], terms.Exact(i), terms.Bound(type, i)))
              << i << ": " << sums[shift + i] << " is not " << terms.Exact(i);
        }
        for (int64_t i = 0; i < shift; ++i) EXPECT_EQ(sums[i], kUntouched);
        EXPECT_EQ(sums[shift + n], kUntouched);
      }
    }
  }
}

TEST_P(RowsTogetherTest, MayHaveFactorsOfAnyMagnitude) {
  constexpr int64_t kColumns = 512;
  for (const WeightType type : TypesAddedTogether()) {
    const RowKernels& kernels = GetRowKernels(type);
    const int64_t count = kernels.rows_together;
    const RandomRows rows(type, count, kColumns, PackedRowBytes(type, kColumns), 3);
    const std::vector<float> factors = RandomFloats(count, 4);
    for (const int exponent : {-140, -60, 0, 60, 110}) {
      SCOPED_TRACE(testing::Message() << WeightTypeName(type) << " 2^" << exponent);
      Terms terms;
      for (int64_t r = 0; r < count; ++r) terms.Add(rows.values[r], std::ldexp(factors[r], exponent));
      std::vector<float> sums(kColumns, 0.0f);
      kernels.add_scaled(List(rows, 0, count).data(), count, terms.factors.data(), kColumns, sums.data());
      kernels.order_sums(kColumns, sums.data());
      for (int64_t i = 0; i < kColumns; ++i) {
        ASSERT_TRUE(Within(sums[i], terms.Exact(i), terms.Bound(type, i)))
            << i << ": " << sums[i] << " is not " << terms.Exact(i);
      }
    }
  }
}

// One row's factor far above the others', which are then lost but for what they are worth beside it; without
// it they count.
TEST_P(RowsTogetherTest, AreRoundedToTheLargestOfThem) {
  constexpr int64_t kColumns = 256;
  for (const WeightType type : TypesAddedTogether()) {
    const RowKernels& kernels = GetRowKernels(type);
    const RandomRows rows(type, 2, kColumns, PackedRowBytes(type, kColumns), 5);
    for (const float large : {0.0f, 0x1p20f}) {
      Terms terms;
      terms.Add(rows.values[0], large);
      terms.Add(rows.values[1], 0.75f);
      std::vector<float> sums(kColumns, 0.0f);
      kernels.add_scaled(List(rows, 0, 2).data(), 2, terms.factors.data(), kColumns, sums.data());
      kernels.order_sums(kColumns, sums.data());
      for (int64_t i = 0; i < kColumns; ++i) {
        ASSERT_TRUE(Within(sums[i], terms.Exact(i), terms.Bound(type, i))) << large << ", " << i;
      }
    }
  }
}

TEST_P(RowsTogetherTest, WithABrokenFactorMakeBrokenSums) {
  constexpr int64_t kColumns = 288;
  for (const WeightType type : TypesAddedTogether()) {
    const RowKernels& kernels = GetRowKernels(type);
    const int64_t count = kernels.rows_together;
    const RandomRows rows(type, count, kColumns, PackedRowBytes(type, kColumns), 6);
    for (const float broken : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> factors = RandomFloats(count, 7);
      factors[count / 2] = broken;
      std::vector<float> sums(kColumns, 0.0f);
      kernels.add_scaled(List(rows, 0, count).data(), count, factors.data(), kColumns, sums.data());
      for (int64_t i = 0; i < kColumns; ++i) ASSERT_FALSE(std::isfinite(sums[i])) << broken << ", " << i;
    }
  }
}

}  // namespace
}  // namespace isotherm::kernels
