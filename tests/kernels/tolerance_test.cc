#include "common/kernels/tolerance.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "common/kernels/packed_row.h"

namespace isotherm::kernels {
namespace {

TEST(Within, ComparesWithTheBound) {
  EXPECT_TRUE(Within(1.0, 1.0, 0.0));
  EXPECT_TRUE(Within(1.5, 1.0, 0.5));
  EXPECT_TRUE(Within(-1.5, -1.0, 0.5));
  EXPECT_FALSE(Within(1.5, 1.0, 0.49));
  EXPECT_FALSE(Within(-1.0, 1.0, 1.0));
}

TEST(Within, RejectsNaNAndDifferentInfinities) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_FALSE(Within(kNaN, 1.0, 1.0));
  EXPECT_FALSE(Within(1.0, kNaN, 1.0));
  EXPECT_FALSE(Within(kNaN, kNaN, kInfinity));
  EXPECT_FALSE(Within(1.0, 1.0, kNaN));
  EXPECT_TRUE(Within(kInfinity, kInfinity, 0.0));
  EXPECT_FALSE(Within(kInfinity, -kInfinity, kInfinity));
  EXPECT_FALSE(Within(kInfinity, 1.0, kInfinity));
  EXPECT_FALSE(Within(1.0, -kInfinity, kInfinity));
}

TEST(DotTolerance, GrowsWithTheSquareRootOfTheLength) {
  EXPECT_DOUBLE_EQ(DotTolerance(1, 1, 1), 4 * std::ldexp(1.0, -24));
  EXPECT_DOUBLE_EQ(DotTolerance(400, 2, 3), 20 * 2 * 3 * DotTolerance(1, 1, 1));
}

TEST(DotTolerance, CountsTheRoundingOfVectorsWhereProductsAreInteger) {
  const double sums = DotTolerance(64, 2, 3);
  EXPECT_EQ(DotTolerance(WeightType::kF16, 64, 2, 3), sums);
  EXPECT_EQ(DotTolerance(WeightType::kQ4_K, 64, 2, 3), sums);
  for (const WeightType type : {WeightType::kQ8_0, WeightType::kQ4_0}) {
    EXPECT_NEAR(DotTolerance(type, 64, 2, 3) - sums, 2 * 3 * 4 / std::sqrt(12) / 32639, 1e-15);
  }
}

TEST(QuantizationError, IsWhatPackingNormalValuesCosts) {
  constexpr int64_t kColumns = 1 << 16;
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(kColumns);
  for (float& value : values) value = normal(random);
  for (const WeightType type :
       {WeightType::kF32, WeightType::kF16, WeightType::kBF16, WeightType::kQ8_0, WeightType::kQ4_0}) {
    std::vector<uint8_t> packed(PackedRowBytes(type, kColumns));
    std::vector<float> back(kColumns);
    PackFloatRow(type, values.data(), kColumns, packed.data());
    UnpackRow(type, packed.data(), kColumns, back.data());
    double error = 0;
    double norm = 0;
    for (int64_t i = 0; i < kColumns; ++i) {
      error += std::pow(static_cast<double>(back[i]) - values[i], 2);
      norm += std::pow(static_cast<double>(values[i]), 2);
    }
    EXPECT_NEAR(std::sqrt(error / norm), QuantizationError(type), 0.03 * QuantizationError(type))
        << WeightTypeName(type);
  }
  EXPECT_LT(QuantizationError(WeightType::kQ6_K), QuantizationError(WeightType::kQ4_K));
}

}  // namespace
}  // namespace isotherm::kernels
