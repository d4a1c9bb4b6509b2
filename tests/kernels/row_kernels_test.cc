#include "common/kernels/row_kernels.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <vector>

#include "common/kernels/tolerance.h"
#include "tests/kernels/test_support.h"

namespace isotherm::kernels {
namespace {

using RowKernelsTest = TargetTest;
INSTANTIATE_ON_EVERY_TARGET(RowKernelsTest);

constexpr float kUntouched = 12345.0f;

TEST(Targets, BestComesFirstAndIsActive) {
  ASSERT_FALSE(SupportedTargets().empty());
  EXPECT_EQ(ActiveTarget(), SupportedTargets().front());
  EXPECT_EQ(SupportedTargets().back(), "AVX2");
}

TEST_P(RowKernelsTest, UnpackIsExact) {
  for (const WeightType type : kAllTypes) {
    for (const int64_t n : AwkwardColumns(type)) {
      SCOPED_TRACE(testing::Message() << WeightTypeName(type) << " x " << n);
      const RandomRows rows(type, 1, n, PackedRowBytes(type, n), 1);
      std::vector<float> out(n + 1, kUntouched);
      GetRowKernels(type).unpack(rows.row(0), n, out.data());
      for (int64_t i = 0; i < n; ++i) ASSERT_EQ(out[i], rows.values[0][i]) << i;
      EXPECT_EQ(out[n], kUntouched);
    }
  }
}

TEST_P(RowKernelsTest, DotIsWithinToleranceAtEveryMisalignment) {
  for (const WeightType type : kAllTypes) {
    for (const int64_t n : AwkwardColumns(type)) {
      const RandomRows rows(type, 1, n, PackedRowBytes(type, n), 2);
      const std::vector<float> x = RandomFloats(n + 3, 3);
      for (int64_t shift = 0; shift <= 3; ++shift) {
        SCOPED_TRACE(testing::Message() << WeightTypeName(type) << " x " << n << " + " << shift);
        // Ends with the allocation.
        const std::vector<float> shifted(x.begin() + 3 - shift, x.end());
        const float* const from = shifted.data() + shift;
        const double exact = ReferenceDot(rows.values[0], from);
        const double bound = DotTolerance(type, n, Norm(rows.values[0]), Norm(from, n));
        const float dot = Dot(type, rows.row(0), from, n);
        EXPECT_TRUE(Within(dot, exact, bound)) << dot << " is not " << exact << " within " << bound;
      }
    }
  }
}

// Blocks of a vector far apart in magnitude, each with a value far above its others: a block's rounding must
// not show in another's products.
TEST_P(RowKernelsTest, DotIsWithinToleranceForValuesOfAnyMagnitude) {
  constexpr int64_t kColumns = 32 * 5;
  for (const WeightType type : {WeightType::kQ8_0, WeightType::kQ4_0, WeightType::kF16}) {
    const RandomRows rows(type, 1, kColumns, PackedRowBytes(type, kColumns), 16);
    for (const int exponent : {-30, 0, 30}) {
      for (int64_t only = 0; only < 5; ++only) {
        SCOPED_TRACE(testing::Message() << WeightTypeName(type) << " 2^" << exponent << " block " << only);
        std::vector<float> x = RandomFloats(kColumns, 17);
        for (int64_t i = 0; i < kColumns; ++i) {
          const float outlier = i % 32 == only ? 1000.0f : 1.0f;
          x[i] = i / 32 == only ? std::ldexp(x[i] * outlier, exponent) : std::ldexp(x[i], -120);
        }
        const double bound = DotTolerance(type, kColumns, Norm(rows.values[0]), Norm(x.data(), kColumns));
        const float dot = Dot(type, rows.row(0), x.data(), kColumns);
        const double exact = ReferenceDot(rows.values[0], x.data());
        EXPECT_TRUE(Within(dot, exact, bound)) << dot << " is not " << exact << " within " << bound;
      }
    }
  }
}

TEST_P(RowKernelsTest, OneWeightOffByTwiceTheBoundFailsTheCheck) {
  constexpr int64_t kColumns = 2048;
  const RandomRows rows(WeightType::kF32, 1, kColumns, PackedRowBytes(WeightType::kF32, kColumns), 4);
  const std::vector<float> x = RandomFloats(kColumns, 5);
  const double exact = ReferenceDot(rows.values[0], x.data());
  const double bound = DotTolerance(kColumns, Norm(rows.values[0]), Norm(x.data(), kColumns));
  const auto dot = [&](const uint8_t* row) { return Dot(WeightType::kF32, row, x.data(), kColumns); };
  ASSERT_TRUE(Within(dot(rows.row(0)), exact, bound));
  int64_t tried = 0;
  for (int64_t i = 0; i < kColumns; i += 97) {
    if (std::abs(x[i]) < 0.1f) continue;
    // Away from the error that is already there, so that the two cannot cancel.
    const double sign = dot(rows.row(0)) < exact ? -1 : 1;
    std::vector<float> row(rows.values[0].begin(), rows.values[0].end());
    row[i] += static_cast<float>(sign * 2 * bound / x[i]);
    const RandomRows changed(WeightType::kF32, 1, kColumns, PackedRowBytes(WeightType::kF32, kColumns), 4);
    PackFloatRow(WeightType::kF32, row.data(), kColumns, changed.packed.data());
    EXPECT_FALSE(Within(dot(changed.row(0)), exact, bound)) << i;
    ++tried;
  }
  EXPECT_GT(tried, 10);
}

TEST_P(RowKernelsTest, NaNAndInfinityReachTheResult) {
  for (const WeightType type : kAllTypes) {
    const RandomRows rows(type, 1, 512, PackedRowBytes(type, 512), 6);
    std::vector<float> x(512, 1.0f);
    x[300] = NAN;
    EXPECT_TRUE(std::isnan(Dot(type, rows.row(0), x.data(), 512))) << WeightTypeName(type);
    x[300] = INFINITY;
    EXPECT_FALSE(std::isfinite(Dot(type, rows.row(0), x.data(), 512))) << WeightTypeName(type);
  }
}

// Every number of rows and vectors modulo the tiles, rows and vectors apart from each other.
TEST_P(RowKernelsTest, MatMulIsBitEqualToProductsOneByOne) {
  for (const WeightType type : kAllTypes) {
    const int64_t block = BlockColumns(type);
    for (const int64_t n :
         {block == 1 ? int64_t{37} : block, block == 1 ? int64_t{515} : 3 * block, int64_t{1280}}) {
      const RandomRows rows(type, 9, n, PackedRowBytes(type, n) + 192, 7);
      const int64_t ldx = n + 5;
      const std::vector<float> x = RandomFloats(16 * ldx, 8);
      for (const int64_t batch : {0, 1, 2, 3, 4, 5, 8, 16}) {
        for (int64_t num_rows = 0; num_rows <= 9; ++num_rows) {
          SCOPED_TRACE(testing::Message()
                       << WeightTypeName(type) << " " << num_rows << " x " << n << ", " << batch);
          const int64_t ldy = num_rows + 2;
          std::vector<float> y(batch * ldy + 1, kUntouched);
          const RowKernels& kernels = GetRowKernels(type);
          kernels.mat_mul(rows.row(0), rows.stride, num_rows,
                          PreparedInputs(kernels, x.data(), ldx, batch, n), batch, n, y.data(), ldy);
          for (int64_t b = 0; b < batch; ++b) {
            for (int64_t r = 0; r < ldy; ++r) {
              const float expected =
                  r < num_rows ? Dot(type, rows.row(r), x.data() + b * ldx, n) : kUntouched;
              ASSERT_EQ(y[b * ldy + r], expected) << b << ", " << r;
            }
          }
          EXPECT_EQ(y[batch * ldy], kUntouched);
        }
      }
    }
  }
}

TEST_P(RowKernelsTest, AddScaledAddsEveryElementAndNoMore) {
  for (const WeightType type : kAllTypes) {
    if (GetRowKernels(type).rows_together > 1) continue;  // rows_together_test.cc
    const bool scaled_blocks = type == WeightType::kQ8_0;
    for (const int64_t n : AwkwardColumns(type)) {
      for (int64_t shift = 0; shift <= 3; ++shift) {
        SCOPED_TRACE(testing::Message() << WeightTypeName(type) << " x " << n << " + " << shift);
        const RandomRows rows(type, 1, n, PackedRowBytes(type, n), 9);
        const std::vector<float> before = RandomFloats(shift + n + 1, 10);
        std::vector<float> y = before;
        const std::vector<const uint8_t*> list(1 + kRowsAhead, rows.row(0));
        const float factor = -0.7f;
        GetRowKernels(type).add_scaled(list.data(), 1, &factor, n, y.data() + shift);
        for (int64_t i = 0; i < n; ++i) {
          const double term = static_cast<double>(-0.7f) * rows.values[0][i];
          const double old = before[shift + i];
          // The rounding of a fused multiply-add, and that of factor * scale.
          const double rounded = std::abs(old + term) + (scaled_blocks ? std::abs(term) : 0.0);
          ASSERT_TRUE(Within(y[shift + i], old + term, UnitRoundOff() * rounded + 1e-45)) << i;
        }
        for (int64_t i = 0; i < shift; ++i) EXPECT_EQ(y[i], before[i]);
        EXPECT_EQ(y[shift + n], before[shift + n]);
      }
    }
  }
}

// Rows in any order and more than once; what the list goes on with must not show.
TEST_P(RowKernelsTest, ListedRowsAreBitEqualToRowsOneByOne) {
  for (const WeightType type : kAllTypes) {
    const int64_t block = BlockColumns(type);
    for (const int64_t n : {block == 1 ? int64_t{37} : block, int64_t{1280}}) {
      const RandomRows rows(type, 9, n, PackedRowBytes(type, n), 13);
      const std::vector<float> x = RandomFloats(3 * n, 14);
      const std::vector<float> factors = RandomFloats(9, 15);
      const RowKernels& kernels = GetRowKernels(type);
      for (int64_t num_rows = 0; num_rows <= 9; ++num_rows) {
        SCOPED_TRACE(testing::Message() << WeightTypeName(type) << " " << num_rows << " x " << n);
        std::vector<const uint8_t*> list;
        for (int64_t r = 0; r < num_rows + kRowsAhead; ++r) list.push_back(rows.row(r * 5 % 7));
        std::vector<float> y(3 * 10, kUntouched);
        kernels.mat_mul_listed(list.data(), num_rows, PreparedInputs(kernels, x.data(), n, 3, n), 3, n,
                               y.data(), 10);
        for (int64_t i = 0; i < 30; ++i) {
          const int64_t r = i % 10;
          EXPECT_EQ(y[i], r < num_rows ? Dot(type, list[r], x.data() + i / 10 * n, n) : kUntouched) << i;
        }
        if (kernels.rows_together > 1) continue;
        std::vector<float> sum(x.begin(), x.begin() + n);
        std::vector<float> expected = sum;
        kernels.add_scaled(list.data(), num_rows, factors.data(), n, sum.data());
        for (int64_t r = 0; r < num_rows; ++r) {
          const std::vector<const uint8_t*> one(1 + kRowsAhead, list[r]);
          kernels.add_scaled(one.data(), 1, &factors[r], n, expected.data());
        }
        EXPECT_EQ(sum, expected);
      }
    }
  }
}

TEST_P(RowKernelsTest, OffsetsPassTwoToThe31) {
  constexpr int64_t kStride = (int64_t{1} << 31) + 64;
  constexpr int64_t kColumns = 64;
  constexpr int64_t kRows = 3;
  const size_t size = kRows * kStride;
  void* const memory =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  uint8_t* const rows = static_cast<uint8_t*>(memory);
  const std::vector<float> values = RandomFloats(kRows * kColumns, 11);
  for (int64_t r = 0; r < kRows; ++r) {
    PackFloatRow(WeightType::kF32, values.data() + r * kColumns, kColumns, rows + r * kStride);
  }
  const std::vector<float> x = RandomFloats(kColumns, 12);
  const RowKernels& kernels = GetRowKernels(WeightType::kF32);
  float y[kRows];
  kernels.mat_mul(rows, kStride, kRows, PreparedInputs(kernels, x.data(), 0, 1, kColumns), 1, kColumns, y, 0);
  for (int64_t r = 0; r < kRows; ++r)
    EXPECT_EQ(y[r], Dot(WeightType::kF32, rows + r * kStride, x.data(), kColumns));
  EXPECT_NE(y[0], y[2]);
  munmap(memory, size);
}

}  // namespace
}  // namespace isotherm::kernels
