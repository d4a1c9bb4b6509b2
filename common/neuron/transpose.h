#ifndef ISOTHERM_COMMON_NEURON_TRANSPOSE_H_
#define ISOTHERM_COMMON_NEURON_TRANSPOSE_H_

#include <cstdint>
#include <vector>

#include "common/base/thread_pool.h"
#include "common/kernels/packed_row.h"

// From down as files store it, [hidden, ffn], to one packed row for each neuron.
namespace isotherm::neuron::internal {

struct DownMatrix {
  const uint8_t* data = nullptr;  // `hidden` rows as the file stores them, `ffn` weights each
  kernels::WeightType type = kernels::WeightType::kF32;
  int64_t hidden = 0;
  int64_t ffn = 0;
};

// The packed row of wanted[k] goes to out + k * stride_bytes.
struct NeuronRows {
  const std::vector<int32_t>* wanted = nullptr;  // ascending
  uint8_t* out = nullptr;
  int64_t stride_bytes = 0;
};

struct SquareSums {
  double error = 0;
  double weight = 0;
};

// F32, F16 and BF16: the bits are moved unchanged.
void TransposeExact(const DownMatrix& down, const NeuronRows& rows, base::ThreadPool& pool);
// Any type to Q8_0 rows; `hidden` is a multiple of 32. Sums over the weights of the wanted neurons, added in
// a fixed order.
SquareSums TransposeToQ8(const DownMatrix& down, const NeuronRows& rows, base::ThreadPool& pool);

}  // namespace isotherm::neuron::internal

#endif  // ISOTHERM_COMMON_NEURON_TRANSPOSE_H_
