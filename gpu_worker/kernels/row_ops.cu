#include "gpu_worker/kernels/launch.h"
#include "gpu_worker/kernels/reduce.cuh"
#include "gpu_worker/kernels/row_ops.h"

namespace isotherm::gpu_worker::cuda {
namespace {

// A token row has one block, so that all of it should be on its way at once.
constexpr int kThreads = 1024;

__global__ void __launch_bounds__(kThreads)
    RmsNormKernel(const float* x, const float* __restrict__ weight, float epsilon, int64_t n, float* out) {
  __shared__ float scratch[kThreads / kWarp];
  const int64_t row = blockIdx.x;
  const float* values = x + row * n;
  float sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum = fmaf(values[i], values[i], sum);
  const float mean = BlockSum<kThreads>(sum, scratch) / static_cast<float>(n);
  const float factor = 1.0f / sqrtf(mean + epsilon);
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < n; i += kThreads) out[row * n + i] = values[i] * factor * weight[i];
}

__global__ void __launch_bounds__(kThreads)
    LayerNormKernel(const float* x, const float* __restrict__ weight, const float* __restrict__ bias,
                    float epsilon, int64_t n, float* out) {
  __shared__ float sums[kThreads / kWarp], squares[kThreads / kWarp];
  const int64_t row = blockIdx.x;
  const float* values = x + row * n;
  float sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += values[i];
  const float mean = BlockSum<kThreads>(sum, sums) / static_cast<float>(n);
  float square = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < n; i += kThreads)
    square = fmaf(values[i] - mean, values[i] - mean, square);
  const float variance = BlockSum<kThreads>(square, squares) / static_cast<float>(n);
  const float factor = 1.0f / sqrtf(variance + epsilon);
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    out[row * n + i] = fmaf((values[i] - mean) * factor, weight[i], bias == nullptr ? 0.0f : bias[i]);
  }
}

__global__ void __launch_bounds__(kThreads)
    LogProbabilitiesKernel(const float* __restrict__ logits, int64_t vocabulary,
                           const uint32_t* __restrict__ targets, float* out) {
  __shared__ float maxima[kThreads / kWarp];
  __shared__ double sums[kThreads / kWarp];
  const int64_t row = blockIdx.x;
  const float* values = logits + row * vocabulary;
  float max = -INFINITY;
  for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) max = MaxKeepingNaN(max, values[i]);
  max = BlockMax<kThreads>(max, maxima);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) sum += expf(values[i] - max);
  sum = BlockSum<kThreads>(sum, sums);
  if (threadIdx.x == 0) out[row] = static_cast<float>(values[targets[row]] - (max + log(sum)));
}

}  // namespace

cudaError_t RmsNorm(const float* x, const float* weight, float epsilon, int64_t rows, int64_t n, float* out,
                    cudaStream_t stream) {
  RmsNormKernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(x, weight, epsilon, n, out);
  return cudaGetLastError();
}

cudaError_t LayerNorm(const float* x, const float* weight, const float* bias, float epsilon, int64_t rows,
                      int64_t n, float* out, cudaStream_t stream) {
  LayerNormKernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(x, weight, bias, epsilon, n, out);
  return cudaGetLastError();
}

cudaError_t LogProbabilities(const float* logits, int64_t vocabulary, const uint32_t* targets, int64_t rows,
                             float* out, cudaStream_t stream) {
  LogProbabilitiesKernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(logits, vocabulary, targets,
                                                                               out);
  return cudaGetLastError();
}

}  // namespace isotherm::gpu_worker::cuda
