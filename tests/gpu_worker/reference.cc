#include "tests/gpu_worker/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "common/kernels/tolerance.h"
#include "tests/gguf/fixture.h"

namespace isotherm::gpu_worker {

Expected ReadExpected(const std::string& name) {
  std::ifstream file(testing::FixturePath(name), std::ios::binary);
  EXPECT_TRUE(file.good()) << name;
  uint32_t count = 0, vocabulary = 0;
  file.read(reinterpret_cast<char*>(&count), 4);
  file.read(reinterpret_cast<char*>(&vocabulary), 4);
  Expected expected;
  expected.tokens.resize(count);
  file.read(reinterpret_cast<char*>(expected.tokens.data()), 4 * count);
  expected.logits.assign(count, std::vector<float>(vocabulary));
  for (std::vector<float>& row : expected.logits)
    file.read(reinterpret_cast<char*>(row.data()), 4 * vocabulary);
  EXPECT_TRUE(file.good()) << name;
  return expected;
}

double RelativeError(const std::vector<float>& computed, const std::vector<float>& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(double{computed[i]} - expected[i], 2);
    norm += std::pow(double{expected[i]}, 2);
  }
  const double error = std::sqrt(difference / norm);
  return std::isnan(error) ? INFINITY : error;
}

double Tolerance(const model::Model& model) {
  constexpr double kF32 = 1e-4;
  // Each layer's FFN output has the error of the requantised weights, independent from layer to layer; this
  // allows for what later layers make of it.
  constexpr double kGrowth = 2;
  const model::Layer& layer = model.layers().front();
  const bool requantised = !layer.down_transposed && (layer.down.info->type == gguf::TensorType::kQ8_0 ||
                                                      layer.down.info->type == gguf::TensorType::kQ4_0);
  if (!requantised) return kF32;
  return kF32 + kGrowth * std::sqrt(static_cast<double>(model.hyperparameters().layers)) *
                    kernels::QuantizationError(kernels::WeightType::kQ8_0);
}

}  // namespace isotherm::gpu_worker
