#ifndef ISOTHERM_TESTS_GPU_WORKER_REFERENCE_H_
#define ISOTHERM_TESTS_GPU_WORKER_REFERENCE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "common/model/model.h"

// The logits of tests/reference, and how near to them a device must come.
namespace isotherm::gpu_worker {

struct Expected {
  std::vector<uint32_t> tokens;
  std::vector<std::vector<float>> logits;  // after each token
};

// The file `name` of tests/reference/data.
Expected ReadExpected(const std::string& name);

// |computed - expected| / |expected| in the Euclidean norm; NaN counts as infinite.
double RelativeError(const std::vector<float>& computed, const std::vector<float>& expected);

// What the logits may differ by, relative. The reference has the dequantised weights, so that the type
// matters only where this side rounds again: ffn_down of a quantised file, transposed and requantised to
// Q8_0.
double Tolerance(const model::Model& model);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_TESTS_GPU_WORKER_REFERENCE_H_
