#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "common/kernels/ops.h"
#include "common/kernels/tolerance.h"
#include "tests/kernels/test_support.h"

namespace isotherm::kernels {
namespace {

using MatMulTest = TargetTest;
INSTANTIATE_ON_EVERY_TARGET(MatMulTest);

constexpr float kUntouched = 12345.0f;

base::ThreadPool::Options Threads(int threads) {
  base::ThreadPool::Options options;
  options.threads = threads;
  return options;
}

struct Product {
  Product(WeightType type, int64_t rows, int64_t columns, int64_t max_batch)
      : data(type, rows, columns, PackedRowBytes(type, columns), 1),
        ldx(columns + 3),
        ldy(rows + 1),
        x(RandomFloats(max_batch * ldx, 2)),
        weight{data.packed.data(), type, rows, columns, data.stride} {}

  std::vector<float> Multiply(int threads, int64_t batch) const {
    base::ThreadPool pool(Threads(threads));
    std::vector<float> y(batch * ldy, kUntouched);
    MatMul(pool, weight, x.data(), ldx, batch, y.data(), ldy);
    return y;
  }

  RandomRows data;
  int64_t ldx;
  int64_t ldy;
  std::vector<float> x;
  WeightMatrix weight;
};

TEST_P(MatMulTest, IsWithinToleranceForEveryTypeAndBatch) {
  for (const WeightType type : kAllTypes) {
    const Product product(type, 131, 512, 33);
    for (const int64_t batch : {1, 2, 16, 17, 33}) {
      for (const int threads : {1, 3}) {
        const std::vector<float> y = product.Multiply(threads, batch);
        for (int64_t b = 0; b < batch; ++b) {
          const float* const x = product.x.data() + b * product.ldx;
          for (int64_t r = 0; r < product.weight.rows; ++r) {
            const std::vector<double>& row = product.data.values[r];
            const double bound = DotTolerance(type, 512, Norm(row), Norm(x, 512));
            ASSERT_TRUE(Within(y[b * product.ldy + r], ReferenceDot(row, x), bound))
                << WeightTypeName(type) << ", batch " << batch << ", " << threads << " threads: " << b << ", "
                << r;
          }
          EXPECT_EQ(y[b * product.ldy + product.weight.rows], kUntouched);
        }
      }
    }
  }
}

TEST_P(MatMulTest, SmallBatchesAreBitEqualToOneAtATimeOnAnyNumberOfThreads) {
  for (const WeightType type : kAllTypes) {
    const Product product(type, 77, 256, kGemmRows);
    for (const int64_t batch : {int64_t{1}, int64_t{7}, kGemmRows}) {
      for (const int threads : {1, 2, 5}) {
        const std::vector<float> y = product.Multiply(threads, batch);
        for (int64_t b = 0; b < batch; ++b) {
          for (int64_t r = 0; r < product.weight.rows; ++r) {
            ASSERT_EQ(y[b * product.ldy + r],
                      Dot(type, product.data.row(r), product.x.data() + b * product.ldx, 256));
          }
        }
      }
    }
  }
}

TEST_P(MatMulTest, ShapesWithoutRowsOrVectors) {
  EXPECT_TRUE(Product(WeightType::kF16, 0, 64, 20).Multiply(2, 0).empty());
  for (const int64_t batch : {1, 20}) {
    for (const float value : Product(WeightType::kF16, 0, 64, 20).Multiply(2, batch))
      EXPECT_EQ(value, kUntouched);
    EXPECT_NE(Product(WeightType::kF16, 1, 64, 20).Multiply(2, batch)[0], kUntouched);
  }
}

// What one token gets must not depend on its company beyond F32 rounding, whatever kernel oneDNN picks for
// the shape.
TEST_P(MatMulTest, LargeBatchesAgreeWithEachOther) {
  constexpr int64_t kColumns = 1024;
  const Product product(WeightType::kF16, 200, kColumns, 129);
  const std::vector<float> alone = product.Multiply(2, 1);
  for (const int64_t batch : {17, 31, 64, 129}) {
    const std::vector<float> y = product.Multiply(2, batch);
    for (int64_t r = 0; r < product.weight.rows; ++r) {
      const double bound =
          DotTolerance(kColumns, Norm(product.data.values[r]), Norm(product.x.data(), kColumns));
      EXPECT_TRUE(Within(y[r], alone[r], bound)) << batch << ", " << r;
    }
  }
}

TEST(MatMul, RepeatsAreBitEqual) {
  const Product product(WeightType::kQ8_0, 300, 512, 40);
  for (const int64_t batch : {5, 40}) EXPECT_EQ(product.Multiply(3, batch), product.Multiply(3, batch));
}

class GemmTest : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Accumulate, GemmTest, ::testing::Bool());

TEST_P(GemmTest, BothFormsWithStrides) {
  const bool accumulate = GetParam();
  for (const auto& [m, n, k] :
       {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {3, 5, 7}, {17, 64, 33}, {40, 50, 129}}) {
    const int64_t lda = k + 1;
    const int64_t ldo = n + 3;
    const std::vector<float> a = RandomFloats(m * lda, 3);
    const std::vector<float> before = RandomFloats(m * ldo, 4);
    for (const bool transposed : {true, false}) {
      const int64_t ldb = (transposed ? k : n) + 2;
      const std::vector<float> b = RandomFloats((transposed ? n : k) * ldb, 5);
      std::vector<float> out = before;
      (transposed ? GemmNT : GemmNN)(m, n, k, a.data(), lda, b.data(), ldb, accumulate, out.data(), ldo);
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          double exact = accumulate ? before[i * ldo + j] : 0;
          double norm_b = 0;
          for (int64_t l = 0; l < k; ++l) {
            const double factor = transposed ? b[j * ldb + l] : b[l * ldb + j];
            exact += a[i * lda + l] * factor;
            norm_b += factor * factor;
          }
          const double bound = DotTolerance(k + 1, Norm(a.data() + i * lda, k) + 1, std::sqrt(norm_b) + 1);
          ASSERT_TRUE(Within(out[i * ldo + j], exact, bound))
              << m << "x" << n << "x" << k << " " << transposed;
        }
        for (int64_t j = n; j < ldo; ++j) EXPECT_EQ(out[i * ldo + j], before[i * ldo + j]);
      }
    }
  }
}

}  // namespace
}  // namespace isotherm::kernels
