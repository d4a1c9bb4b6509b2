#ifndef ISOTHERM_GPU_WORKER_KERNELS_ELEMENTWISE_H_
#define ISOTHERM_GPU_WORKER_KERNELS_ELEMENTWISE_H_

#include <cuda_runtime.h>

#include <cstdint>

namespace isotherm::gpu_worker::cuda {

// y[r, :] += scale * (x[r, :] + bias [n]); bias may be null.
cudaError_t Add(const float* x, const float* bias, float scale, int64_t rows, int64_t n, float* y,
                cudaStream_t stream);
// y[r, :] += bias [n].
cudaError_t AddBias(const float* bias, int64_t rows, int64_t n, float* y, cudaStream_t stream);
// y[i] = 0. A kernel, as kernels are launched early behind kernels only (chain.cuh).
cudaError_t Clear(float* y, int64_t count, cudaStream_t stream);
// x = max(x, 0).
cudaError_t Relu(float* x, int64_t count, cudaStream_t stream);
// out[i, :] = x[rows[i], :], i < count.
cudaError_t GatherRows(const float* x, const int32_t* rows, int64_t count, int64_t n, float* out,
                       cudaStream_t stream);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_ELEMENTWISE_H_
