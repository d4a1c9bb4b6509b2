#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "common/kernels/ops.h"
#include "common/kernels/tolerance.h"
#include "tests/kernels/test_support.h"

namespace isotherm::kernels {
namespace {

using ElementwiseTest = TargetTest;
INSTANTIATE_ON_EVERY_TARGET(ElementwiseTest);

constexpr float kUntouched = 12345.0f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST_P(ElementwiseTest, RmsNormIsAccurateAndWorksInPlace) {
  for (int64_t n = 1; n <= 70; ++n) {
    const std::vector<float> x = RandomFloats(n, 1);
    const std::vector<float> weight = RandomFloats(n, 2);
    std::vector<float> out(n + 1, kUntouched);
    RmsNorm(x.data(), weight.data(), 1e-5f, n, out.data());
    const double scale = 1 / std::sqrt(std::pow(Norm(x.data(), n), 2) / n + double{1e-5f});
    for (int64_t i = 0; i < n; ++i) {
      const double exact = x[i] * scale * weight[i];
      EXPECT_TRUE(Within(out[i], exact, 4 * UnitRoundOff() * std::abs(exact))) << n << " " << i;
    }
    EXPECT_EQ(out[n], kUntouched);
    std::vector<float> in_place = x;
    RmsNorm(in_place.data(), weight.data(), 1e-5f, n, in_place.data());
    EXPECT_TRUE(std::equal(in_place.begin(), in_place.end(), out.begin()));
  }
}

TEST_P(ElementwiseTest, RmsNormOfValuesWhoseSquaresOverflowF32) {
  const std::vector<float> x(40, 1e25f);
  const std::vector<float> weight(40, 1.0f);
  std::vector<float> out(40);
  RmsNorm(x.data(), weight.data(), 1e-5f, 40, out.data());
  for (const float value : out) EXPECT_FLOAT_EQ(value, 1.0f);
}

TEST_P(ElementwiseTest, LayerNormIsAccurateAndWorksInPlace) {
  for (int64_t n = 1; n <= 70; ++n) {
    std::vector<float> x = RandomFloats(n, 1);
    for (float& value : x) value += 1000;  // a mean that F32 sums would lose digits to
    const std::vector<float> weight = RandomFloats(n, 2), bias = RandomFloats(n, 3);
    double mean = 0, variance = 0;
    for (const float value : x) mean += value / static_cast<double>(n);
    for (const float value : x) variance += (value - mean) * (value - mean) / static_cast<double>(n);
    const double scale = 1 / std::sqrt(variance + double{1e-5f});
    for (const float* shift : {static_cast<const float*>(nullptr), bias.data()}) {
      std::vector<float> out(n + 1, kUntouched);
      LayerNorm(x.data(), weight.data(), shift, 1e-5f, n, out.data());
      for (int64_t i = 0; i < n; ++i) {
        const double product = (x[i] - mean) * scale * weight[i];
        const double exact = product + (shift == nullptr ? 0 : shift[i]);
        EXPECT_TRUE(Within(out[i], exact, 2 * UnitRoundOff() * std::abs(exact) + 1e-9)) << n << " " << i;
      }
      EXPECT_EQ(out[n], kUntouched);
      std::vector<float> in_place = x;
      LayerNorm(in_place.data(), weight.data(), shift, 1e-5f, n, in_place.data());
      EXPECT_TRUE(std::equal(in_place.begin(), in_place.end(), out.begin()));
    }
  }
}

TEST_P(ElementwiseTest, AddScaledAddsBiasesAndTouchesNoNeighbour) {
  for (int64_t n = 0; n <= 70; ++n) {
    const std::vector<float> x = RandomFloats(n, 3), bias = RandomFloats(n, 4);
    const std::vector<float> before = RandomFloats(n + 1, 5);
    for (const float* shift : {static_cast<const float*>(nullptr), bias.data()}) {
      std::vector<float> y = before;
      AddScaled(x.data(), shift, 0.3f, y.data(), n);
      for (int64_t i = 0; i < n; ++i) {
        const double term = 0.3f * (double{x[i]} + (shift == nullptr ? 0 : shift[i]));
        const double bound = 2 * UnitRoundOff() * (std::abs(term) + std::abs(before[i]));
        ASSERT_TRUE(Within(y[i], before[i] + term, bound)) << n << " " << i;
      }
      EXPECT_EQ(y[n], before[n]);
    }
  }
}

TEST_P(ElementwiseTest, SumAddsInOrderAlsoInPlaceAndTouchesNoNeighbour) {
  for (int64_t n = 0; n <= 70; ++n) {
    const std::vector<float> a = RandomFloats(n, 3), b = RandomFloats(n, 4), c = RandomFloats(n, 5);
    for (int64_t count = 0; count <= 4; ++count) {
      std::vector<float> y = RandomFloats(n + 1, 6);
      std::vector<float> expected(y.size(), 0.0f);
      expected[n] = y[n];
      const float* const rows[] = {y.data(), a.data(), b.data(), c.data()};
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t i = 0; i < n; ++i) expected[i] += rows[r][i];
      }
      Sum(rows, count, n, y.data());
      EXPECT_EQ(y, expected) << count << " x " << n;
    }
  }
}

TEST_P(ElementwiseTest, AddTouchesNoNeighbour) {
  for (int64_t n = 0; n <= 70; ++n) {
    const std::vector<float> x = RandomFloats(n, 3);
    const std::vector<float> before = RandomFloats(n + 1, 4);
    std::vector<float> y = before;
    Add(x.data(), y.data(), n);
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(y[i], before[i] + x[i]);
    EXPECT_EQ(y[n], before[n]);
  }
}

TEST_P(ElementwiseTest, SiluMulIsAccurate) {
  for (int64_t n = 0; n <= 70; ++n) {
    std::vector<float> gate = RandomFloats(n + 1, 5);
    for (float& value : gate) value *= 10;
    const std::vector<float> before = gate;
    const std::vector<float> up = RandomFloats(n, 6);
    SiluMul(gate.data(), up.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      const double exact = before[i] / (1 + std::exp(-static_cast<double>(before[i]))) * up[i];
      EXPECT_TRUE(Within(gate[i], exact, 8 * UnitRoundOff() * std::abs(exact))) << before[i];
    }
    EXPECT_EQ(gate[n], before[n]);
  }
}

TEST_P(ElementwiseTest, SiluMulAtTheExtremes) {
  float gate[] = {100.0f, 1e30f, -100.0f, -1e4f, 0.0f, NAN};
  const float up[] = {1, 1, 1, 1, 1, 1};
  SiluMul(gate, up, 6);
  EXPECT_FLOAT_EQ(gate[0], 100.0f);
  EXPECT_FLOAT_EQ(gate[1], 1e30f);
  EXPECT_NEAR(gate[2], 0.0f, 1e-30);
  EXPECT_NEAR(gate[3], 0.0f, 1e-30);
  EXPECT_EQ(gate[4], 0.0f);
  EXPECT_TRUE(std::isnan(gate[5]));
}

TEST_P(ElementwiseTest, RopeRotatesPairsAtEveryPosition) {
  constexpr int64_t kHeads = 3;
  for (const auto& [head_dim, rope_dims] :
       {std::pair<int64_t, int64_t>{16, 16}, {64, 64}, {80, 20}, {128, 128}, {24, 0}}) {
    const int64_t pairs = rope_dims / 2;
    std::vector<float> frequency(pairs);
    for (int64_t i = 0; i < pairs; ++i) {
      frequency[i] = static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(i) / rope_dims));
    }
    for (const RopeTable& table :
         {RopeTable{frequency.data(), pairs, 2, 1}, RopeTable{frequency.data(), pairs, 1, pairs}}) {
      for (const float position : {0.0f, 1.0f, 511.0f, 4097.0f, 131071.0f, 1000000.0f}) {
        const std::vector<float> before = RandomFloats(kHeads * head_dim, 7);
        std::vector<float> vectors = before, untouched = before;
        Rope(table, position, kHeads, head_dim, vectors.data());
        for (int64_t pair = 0; pair < kHeads * pairs; ++pair) {
          const int64_t i = pair / pairs * head_dim + pair % pairs * table.step;
          const int64_t j = i + table.gap;
          const double angle = static_cast<double>(position) * frequency[pair % pairs];
          const double a = before[i] * std::cos(angle) - before[j] * std::sin(angle);
          const double b = before[i] * std::sin(angle) + before[j] * std::cos(angle);
          const double bound = 4 * UnitRoundOff() * std::hypot(before[i], before[j]);
          ASSERT_TRUE(Within(vectors[i], a, bound)) << head_dim << " at " << position << ", " << i;
          ASSERT_TRUE(Within(vectors[j], b, bound)) << head_dim << " at " << position << ", " << j;
          untouched[i] = vectors[i];
          untouched[j] = vectors[j];
        }
        EXPECT_EQ(vectors, untouched) << head_dim << " at " << position;
      }
    }
  }
}

TEST_P(ElementwiseTest, LogSumExpIsAccurate) {
  for (const int64_t n : {1, 2, 3, 7, 8, 9, 17, 64, 70, 1000, 32001}) {
    std::vector<float> x = RandomFloats(n, 8);
    for (float& value : x) value = value * 20 + 500;
    double sum = 0;
    for (const float value : x) sum += std::exp(static_cast<double>(value) - 500);
    EXPECT_NEAR(LogSumExp(x.data(), n), 500 + std::log(sum), 1e-11) << n;
  }
}

TEST_P(ElementwiseTest, LogSumExpAtTheExtremes) {
  const float masked[] = {-kInfinity, 2.0f, -kInfinity};
  EXPECT_NEAR(LogSumExp(masked, 3), 2.0, 1e-15);
  const float none[] = {-kInfinity, -kInfinity};
  EXPECT_EQ(LogSumExp(none, 2), -kInfinity);
  const float far[] = {-3e38f, 3e38f};
  EXPECT_EQ(LogSumExp(far, 2), 3e38f);
  const float infinite[] = {kInfinity, 1.0f};
  EXPECT_EQ(LogSumExp(infinite, 2), kInfinity);
  std::vector<float> broken(20, 1.0f);
  broken[17] = NAN;
  EXPECT_TRUE(std::isnan(LogSumExp(broken.data(), 20)));
  const float all_broken[] = {NAN, NAN};
  EXPECT_TRUE(std::isnan(LogSumExp(all_broken, 2)));
}

TEST_P(ElementwiseTest, ArgMaxTakesTheLowestOfEqualValues) {
  for (int64_t n = 1; n <= 70; ++n) {
    for (int64_t largest = 0; largest < n; ++largest) {
      std::vector<float> x = RandomFloats(n, 9);
      for (int64_t i = largest; i < n; i += 3) x[i] = 100;
      ASSERT_EQ(ArgMax(x.data(), n), largest);
    }
  }
  const float low[] = {-kInfinity, -3.0f, -3.0f};
  EXPECT_EQ(ArgMax(low, 3), 1);
  const float none[] = {-kInfinity, -kInfinity};
  EXPECT_EQ(ArgMax(none, 2), 0);
  std::vector<float> broken(40, 1.0f);
  broken[0] = NAN;
  broken[33] = 2.0f;
  broken[39] = NAN;
  EXPECT_EQ(ArgMax(broken.data(), 40), 33);
}

}  // namespace
}  // namespace isotherm::kernels
