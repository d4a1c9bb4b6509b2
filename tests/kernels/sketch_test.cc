#include "common/kernels/sketch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/kernels/tolerance.h"
#include "tests/kernels/test_support.h"

namespace isotherm::kernels {
namespace {

using SketchTest = TargetTest;
INSTANTIATE_ON_EVERY_TARGET(SketchTest);

struct Sketches {
  Sketches(int64_t rows, int64_t columns, uint64_t seed)
      : columns(columns),
        values(RandomFloats(rows * columns, seed)),
        sketches(rows * SketchRowBytes(columns)),
        input(SketchInputBytes(columns)) {
    for (int64_t r = 0; r < rows; ++r) {
      SketchRow(values.data() + r * columns, columns, sketches.data() + r * SketchRowBytes(columns));
    }
  }
  std::vector<float> Scores(const std::vector<float>& x, int64_t rows) {
    std::vector<float> scores(rows);
    SketchInput(x.data(), columns, input.data());
    SketchScores(sketches.data(), rows, input.data(), columns, scores.data());
    return scores;
  }

  int64_t columns;
  std::vector<float> values;
  Bytes sketches;
  Bytes input;
};

std::vector<double> Rounded(WeightType type, const float* values, int64_t n) {
  Bytes packed(PackedRowBytes(type, n));
  std::vector<float> out(n);
  PackFloatRow(type, values, n, packed.data());
  UnpackRow(type, packed.data(), n, out.data());
  return {out.begin(), out.end()};
}

TEST(Sketch, RowsAreAboutHalfAByteAColumn) {
  EXPECT_EQ(SketchRowBytes(2048), 1152);
  EXPECT_EQ(SketchRowBytes(4096) % 64, 0);
  EXPECT_EQ(SketchRowBytes(0), 0);
  EXPECT_EQ(SketchInputBytes(32) % 64, 0);
}

// Rows are rounded as Q4_0 and inputs as Q8_0 but for the F32 scale of a block: only F32 roundings of the sum
// and the scale's F16 rounding, 2^-11, are left between the score and the product of the rounded vectors.
TEST_P(SketchTest, ScoresAreProductsOfTheRoundedVectors) {
  constexpr int64_t kRows = 5;
  for (const int64_t columns : {0, 32, 64, 480, 512, 544, 1024, 2048, 2560, 5632}) {
    Sketches sketches(kRows, columns, 1);
    const std::vector<float> x = RandomFloats(columns, 2);
    const std::vector<float> scores = sketches.Scores(x, kRows);
    const std::vector<double> rounded_x = Rounded(WeightType::kQ8_0, x.data(), columns);
    const std::vector<float> float_x(rounded_x.begin(), rounded_x.end());
    for (int64_t r = 0; r < kRows; ++r) {
      const std::vector<double> row =
          Rounded(WeightType::kQ4_0, sketches.values.data() + r * columns, columns);
      const double bound = 0x1p-11 * Norm(row) * Norm(float_x.data(), columns);
      EXPECT_TRUE(Within(scores[r], ReferenceDot(row, float_x.data()), bound)) << columns << ", row " << r;
    }
  }
}

TEST_P(SketchTest, NothingSaturatesAtTheExtremes) {
  constexpr int64_t kColumns = 512;
  for (const float row_sign : {-1.0f, 1.0f}) {
    for (const float x_sign : {-1.0f, 1.0f}) {
      const std::vector<float> row(kColumns, row_sign * 8);
      const std::vector<float> x(kColumns, x_sign * 127);
      Bytes sketch(SketchRowBytes(kColumns));
      Bytes input(SketchInputBytes(kColumns));
      SketchRow(row.data(), kColumns, sketch.data());
      SketchInput(x.data(), kColumns, input.data());
      float score;
      SketchScores(sketch.data(), 1, input.data(), kColumns, &score);
      EXPECT_EQ(score, row_sign * x_sign * 8 * 127 * kColumns);
    }
  }
}

TEST_P(SketchTest, TellsWhichProductsArePositive) {
  constexpr int64_t kRows = 400;
  constexpr int64_t kColumns = 1024;
  Sketches sketches(kRows, kColumns, 3);
  const std::vector<float> x = RandomFloats(kColumns, 4);
  const std::vector<float> scores = sketches.Scores(x, kRows);
  // Rounding moves a product by about QuantizationError * |row| * |x| / sqrt(columns) standard deviations.
  const double margin = 4 * QuantizationError(WeightType::kQ4_0) * std::sqrt(kColumns);
  int clear = 0;
  for (int64_t r = 0; r < kRows; ++r) {
    const float* const row = sketches.values.data() + r * kColumns;
    const double exact = ReferenceDot(std::vector<double>(row, row + kColumns), x.data());
    EXPECT_TRUE(Within(scores[r], exact, margin * 1.2)) << scores[r] << " " << exact;
    if (std::abs(exact) < margin) continue;
    ++clear;
    EXPECT_EQ(scores[r] > 0, exact > 0) << r;
  }
  EXPECT_GT(clear, kRows / 2);
}

TEST(Sketch, IsBitEqualOnEveryTarget) {
  constexpr int64_t kRows = 33;
  for (const int64_t columns : {32, 512, 2048, 5632}) {
    std::vector<float> first_scores;
    for (const std::string& target : SupportedTargets()) {
      ForceTargetForTest(target);
      ASSERT_EQ(ActiveTarget(), target);
      Sketches sketches(kRows, columns, 5);
      const std::vector<float> scores = sketches.Scores(RandomFloats(columns, 6), kRows);
      if (first_scores.empty()) first_scores = scores;
      EXPECT_EQ(scores, first_scores) << target << " " << columns;
    }
    ForceTargetForTest("");
  }
}

}  // namespace
}  // namespace isotherm::kernels
