#ifndef ISOTHERM_GPU_WORKER_KERNELS_ROW_OPS_H_
#define ISOTHERM_GPU_WORKER_KERNELS_ROW_OPS_H_

#include <cuda_runtime.h>

#include <cstdint>

// Operators that reduce rows of F32 values.
namespace isotherm::gpu_worker::cuda {

// out = x / sqrt(mean(x^2) + epsilon) * weight, or with the mean subtracted
// (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias, bias null for none.
struct RowNorm {
  bool subtract_mean = false;
  const float* weight = nullptr;
  const float* bias = nullptr;
  float epsilon = 0;
};
// scale * (x [rows, n] + bias [n]), bias null for none.
struct RowAddend {
  const float* x = nullptr;
  const float* bias = nullptr;
  float scale = 1;
};
// Rows of n values; may run in place.
cudaError_t Normalize(const RowNorm& norm, const float* x, int64_t rows, int64_t n, float* out,
                      cudaStream_t stream);
// y += addend, then out[r, :] = norm(y[r, :]).
cudaError_t AddAndNormalize(const RowAddend& addend, const RowNorm& norm, int64_t rows, int64_t n, float* y,
                            float* out, cudaStream_t stream);

// out[i] = log softmax(logits[i, :])[targets[i]].
cudaError_t LogProbabilities(const float* logits, int64_t vocabulary, const uint32_t* targets, int64_t rows,
                             float* out, cudaStream_t stream);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_ROW_OPS_H_
