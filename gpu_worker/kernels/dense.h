#ifndef ISOTHERM_GPU_WORKER_KERNELS_DENSE_H_
#define ISOTHERM_GPU_WORKER_KERNELS_DENSE_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "common/kernels/ops.h"
#include "gpu_worker/kernels/sparse_ffn.h"

// Operands of dense products on tensor cores. These read eleven significant bits of an F32 (TF32), so values
// are split in two parts, whose products together carry 22 bits: the sums then are as good as F32's own
// (common/kernels/tolerance.h). F16 and BF16 weights need no second part.
namespace isotherm::gpu_worker::cuda {

// A row-major matrix, high + low; strides in values. No low: the high part is exact.
struct SplitMatrix {
  float* high = nullptr;
  float* low = nullptr;
  int64_t stride = 0;
};

// Whether the type's weights are exact without a low part.
inline bool IsExactInTf32(kernels::WeightType type) {
  return type == kernels::WeightType::kF16 || type == kernels::WeightType::kBF16;
}

// out = x [rows, columns].
cudaError_t SplitRows(const float* x, int64_t rows, int64_t columns, const SplitMatrix& out,
                      cudaStream_t stream);

// out[i, :] = row first + i of the matrix, i < count, and zero for count <= i < padded. out.low may be
// null where the type is exact.
cudaError_t UnpackSplit(const kernels::WeightMatrix& weight, int64_t first, int64_t count, int64_t padded,
                        const SplitMatrix& out, cudaStream_t stream);

// Products of up rows with token rows, [rows, neurons.count] with a stride; null without up rows.
struct UpProducts {
  const float* products = nullptr;
  int64_t stride = 0;
};

// values [rows, values.stride] = activation(gate + bias) * up where the mask asks for it, zero elsewhere and
// in the columns past neurons.count; counts what was computed and what fired.
cudaError_t ActivateDense(const NeuronSet& neurons, const GateSource& gates, const UpProducts& ups,
                          const FfnRows& rows, const GateActivation& activation, const SplitMatrix& values,
                          FfnCounters* counters, cudaStream_t stream);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_DENSE_H_
