#ifndef ISOTHERM_GPU_WORKER_KERNELS_ROW_OPS_H_
#define ISOTHERM_GPU_WORKER_KERNELS_ROW_OPS_H_

#include <cuda_runtime.h>

#include <cstdint>

// Operators that reduce a row of F32 values, one block a row.
namespace isotherm::gpu_worker::cuda {

// out = x / sqrt(mean(x^2) + epsilon) * weight for rows of n values; may run in place.
cudaError_t RmsNorm(const float* x, const float* weight, float epsilon, int64_t rows, int64_t n, float* out,
                    cudaStream_t stream);

// out = (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias, bias null for none; may run in place.
cudaError_t LayerNorm(const float* x, const float* weight, const float* bias, float epsilon, int64_t rows,
                      int64_t n, float* out, cudaStream_t stream);

// out[i] = log softmax(logits[i, :])[targets[i]].
cudaError_t LogProbabilities(const float* logits, int64_t vocabulary, const uint32_t* targets, int64_t rows,
                             float* out, cudaStream_t stream);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_ROW_OPS_H_
