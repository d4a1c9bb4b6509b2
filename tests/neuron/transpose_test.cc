#include "common/neuron/transpose.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace isotherm::neuron::internal {
namespace {

using kernels::WeightType;

constexpr uint8_t kUnwritten = 0xcd;

std::vector<int32_t> EveryThird(int64_t ffn) {
  std::vector<int32_t> neurons;
  for (int64_t j = 1; j < ffn; j += 3) neurons.push_back(static_cast<int32_t>(j));
  return neurons;
}

std::vector<int32_t> Every(int64_t ffn) {
  std::vector<int32_t> neurons(ffn);
  std::iota(neurons.begin(), neurons.end(), 0);
  return neurons;
}

template <typename Word>
void CheckExact(WeightType type) {
  base::ThreadPool pool({.threads = 3});
  for (int64_t hidden : {1, 31, 32, 63, 64, 65, 200}) {
    for (int64_t ffn : {1, 2, 255, 256, 257, 700}) {
      std::vector<Word> file(hidden * ffn);
      std::mt19937 random(1);
      for (Word& word : file) word = static_cast<Word>(random());
      const int64_t row_bytes = kernels::PackedRowBytes(type, hidden);
      const int64_t stride = row_bytes + 128;
      for (const std::vector<int32_t>& wanted : {Every(ffn), EveryThird(ffn)}) {
        std::vector<uint8_t> out(wanted.size() * stride, kUnwritten);
        TransposeExact({reinterpret_cast<const uint8_t*>(file.data()), type, hidden, ffn},
                       {&wanted, out.data(), stride}, pool);
        for (size_t k = 0; k < wanted.size(); ++k) {
          std::vector<uint8_t> expected(stride, kUnwritten);
          std::memset(expected.data(), 0, row_bytes);
          for (int64_t h = 0; h < hidden; ++h) {
            std::memcpy(&expected[h * sizeof(Word)], &file[h * ffn + wanted[k]], sizeof(Word));
          }
          ASSERT_EQ(std::memcmp(expected.data(), &out[k * stride], stride), 0)
              << "hidden " << hidden << ", ffn " << ffn << ", neuron " << wanted[k];
        }
      }
    }
  }
}

TEST(TransposeTest, MovesTheBitsOfF16) { CheckExact<uint16_t>(WeightType::kF16); }
TEST(TransposeTest, MovesTheBitsOfF32) { CheckExact<uint32_t>(WeightType::kF32); }

// Blocks as files store them, from packed rows of random values.
std::vector<uint8_t> RandomFileRows(WeightType type, int64_t rows, int64_t columns) {
  const int64_t block = kernels::BlockColumns(type);
  const int64_t block_bytes = kernels::FileRowBytes(type, block);
  std::vector<uint8_t> file(rows * kernels::FileRowBytes(type, columns));
  std::mt19937 random(2);
  for (size_t i = 0; i < file.size(); i += block_bytes) {
    for (int64_t b = 0; b < block_bytes; ++b) file[i + b] = static_cast<uint8_t>(random());
    // Q8_0 and Q4_0 begin with an F16 scale: keep it finite and small.
    const uint16_t scale = kernels::FloatToHalf(static_cast<float>(random() % 1000) * 1e-4f);
    std::memcpy(&file[i], &scale, sizeof(scale));
  }
  return file;
}

TEST(TransposeTest, QuantisesEveryNeuronByItself) {
  base::ThreadPool pool({.threads = 2});
  for (WeightType type : {WeightType::kQ8_0, WeightType::kQ4_0}) {
    for (int64_t hidden : {32, 64, 96, 160}) {
      for (int64_t ffn : {32, 256, 288, 576}) {
        const std::vector<uint8_t> file = RandomFileRows(type, hidden, ffn);
        std::vector<float> weights(hidden * ffn);
        for (int64_t h = 0; h < hidden; ++h) {
          kernels::UnpackFileRow(type, &file[h * kernels::FileRowBytes(type, ffn)], ffn, &weights[h * ffn]);
        }
        const int64_t stride = kernels::PackedRowBytes(WeightType::kQ8_0, hidden);
        for (const std::vector<int32_t>& wanted : {Every(ffn), EveryThird(ffn)}) {
          std::vector<uint8_t> out(wanted.size() * stride, kUnwritten);
          const SquareSums sums =
              TransposeToQ8({file.data(), type, hidden, ffn}, {&wanted, out.data(), stride}, pool);
          double error = 0, weight = 0;
          for (size_t k = 0; k < wanted.size(); ++k) {
            std::vector<float> row(hidden), rounded(hidden);
            for (int64_t h = 0; h < hidden; ++h) row[h] = weights[h * ffn + wanted[k]];
            std::vector<uint8_t> expected(stride);
            kernels::PackFloatRow(WeightType::kQ8_0, row.data(), hidden, expected.data());
            ASSERT_EQ(std::memcmp(expected.data(), &out[k * stride], stride), 0)
                << "hidden " << hidden << ", ffn " << ffn << ", neuron " << wanted[k];
            kernels::UnpackRow(WeightType::kQ8_0, expected.data(), hidden, rounded.data());
            for (int64_t h = 0; h < hidden; ++h) {
              error += std::pow(static_cast<double>(rounded[h]) - row[h], 2);
              weight += std::pow(static_cast<double>(row[h]), 2);
            }
          }
          EXPECT_NEAR(sums.error, error, 1e-9 * error + 1e-30);
          EXPECT_NEAR(sums.weight, weight, 1e-9 * weight);
          EXPECT_GT(sums.error, 0);
        }
      }
    }
  }
}

}  // namespace
}  // namespace isotherm::neuron::internal
