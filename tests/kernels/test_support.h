#ifndef ISOTHERM_TESTS_KERNELS_TEST_SUPPORT_H_
#define ISOTHERM_TESTS_KERNELS_TEST_SUPPORT_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "common/kernels/packed_row.h"
#include "common/kernels/row_kernels.h"

namespace isotherm::kernels {

inline constexpr WeightType kAllTypes[] = {WeightType::kF32,  WeightType::kF16,  WeightType::kBF16,
                                           WeightType::kQ8_0, WeightType::kQ4_0, WeightType::kQ4_1,
                                           WeightType::kQ5_0, WeightType::kQ5_1, WeightType::kQ4_K,
                                           WeightType::kQ5_K, WeightType::kQ6_K};

// A test that runs once on every instruction set of this CPU and makes sure that it does.
class TargetTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ASSERT_EQ(UnsupportedCpuReason(), nullptr);
    ForceTargetForTest(GetParam());
    ASSERT_EQ(ActiveTarget(), GetParam());
  }
  void TearDown() override { ForceTargetForTest(""); }
};

#define INSTANTIATE_ON_EVERY_TARGET(Suite)                                          \
  INSTANTIATE_TEST_SUITE_P(Targets, Suite, ::testing::ValuesIn(SupportedTargets()), \
                           [](const auto& info) { return info.param; })

// Bytes on a 64-byte boundary that end exactly where the allocation does, so that the address sanitizer sees
// every read past the end.
class Bytes {
 public:
  explicit Bytes(int64_t size)
      : data_(static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>((size + 63) / 64 * 64))),
              &std::free) {}
  uint8_t* data() const { return data_.get(); }

 private:
  std::unique_ptr<uint8_t, decltype(&std::free)> data_;
};

// Vectors in the form in which the products of a type read them, which lasts as long as this does.
class PreparedInputs {
 public:
  PreparedInputs(const RowKernels& kernels, const float* x, int64_t ldx, int64_t batch, int64_t n)
      : room_(batch * kernels.input_bytes(n)),
        inputs_(PrepareInputs(kernels, x, ldx, batch, n, room_.data())) {}
  operator const RowInputs&() const { return inputs_; }

 private:
  Bytes room_;
  RowInputs inputs_;
};

// The product of one row with one vector, by itself.
float Dot(WeightType type, const uint8_t* row, const float* x, int64_t n);

// Normally distributed.
std::vector<float> RandomFloats(int64_t n, uint64_t seed);

// A row as the file stores it; every bit pattern of quants and block scales occurs.
std::vector<uint8_t> RandomFileRow(WeightType type, int64_t columns, uint64_t seed);

// Dequantises it one element after the other by the definition of the format. Values are F32; only those of
// types with a minimum had to be rounded.
std::vector<double> ReferenceRow(WeightType type, const std::vector<uint8_t>& file_row, int64_t columns);

// `rows` packed rows `stride` bytes apart, and what they hold.
struct RandomRows {
  RandomRows(WeightType type, int64_t rows, int64_t columns, int64_t stride, uint64_t seed);
  const uint8_t* row(int64_t r) const { return packed.data() + r * stride; }

  int64_t stride;
  Bytes packed;
  std::vector<std::vector<double>> values;
};

// In F64.
double ReferenceDot(const std::vector<double>& a, const float* b);
double Norm(const std::vector<double>& a);
double Norm(const float* a, int64_t n);

// The column counts worth trying: whole blocks, up to twice the lanes one by one, around multiples of 512.
std::vector<int64_t> AwkwardColumns(WeightType type);

}  // namespace isotherm::kernels

#endif  // ISOTHERM_TESTS_KERNELS_TEST_SUPPORT_H_
