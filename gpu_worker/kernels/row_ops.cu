#include "gpu_worker/kernels/chain.cuh"
#include "gpu_worker/kernels/reduce.cuh"
#include "gpu_worker/kernels/row_ops.h"

namespace isotherm::gpu_worker::cuda {
namespace {

// A token row has one block, so that all of it should be on its way at once.
constexpr int kThreads = 1024;

// A term added to the row before it is normalised: values += scale * (x + bias). Null x: none.
struct RowTerm {
  const float* x = nullptr;
  const float* bias = nullptr;
  float scale = 1;

  __device__ float At(int64_t row, int64_t n, int64_t i) const {
    const float term = x[row * n + i];
    return bias == nullptr ? term : term + bias[i];
  }
  // To the row's values that this thread reads afterwards, from column `first` on.
  __device__ void AddTo(float* values, int64_t row, int64_t n, int64_t first = 0) const {
    if (x == nullptr) return;
#pragma unroll 4
    for (int64_t i = first + threadIdx.x; i < n; i += kThreads) {
      values[i] = fmaf(scale, At(row, n, i), values[i]);
    }
  }
};

// The first columns of each thread, as many as most models have, are read once and stay in registers.
__global__ void __launch_bounds__(kThreads)
    RmsNormKernel(RowTerm term, float* x, const float* __restrict__ weight, float epsilon, int64_t n,
                  float* out) {
  constexpr int kHeld = 8;
  constexpr int64_t kRest = int64_t{kHeld} * kThreads;
  __shared__ float scratch[kThreads / kWarp];
  float held[kHeld], terms[kHeld], weights[kHeld];
  LetNextStart();
  // Which no other kernel writes.
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = threadIdx.x + k * kThreads;
    weights[k] = i < n ? weight[i] : 0.0f;
  }
  AwaitPrevious();
  const int64_t row = blockIdx.x;
  float* const values = x + row * n;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = threadIdx.x + k * kThreads;
    held[k] = i < n ? values[i] : 0.0f;
    terms[k] = i < n && term.x != nullptr ? term.At(row, n, i) : 0.0f;
  }
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = threadIdx.x + k * kThreads;
    if (i >= n || term.x == nullptr) continue;
    held[k] = fmaf(term.scale, terms[k], held[k]);
    values[i] = held[k];
  }
  term.AddTo(values, row, n, kRest);
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) sum = fmaf(held[k], held[k], sum);
  for (int64_t i = threadIdx.x + kRest; i < n; i += kThreads) sum = fmaf(values[i], values[i], sum);
  const float mean = BlockSum<kThreads>(sum, scratch) / static_cast<float>(n);
  const float factor = 1.0f / sqrtf(mean + epsilon);
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t i = threadIdx.x + k * kThreads;
    if (i < n) out[row * n + i] = held[k] * factor * weights[k];
  }
  for (int64_t i = threadIdx.x + kRest; i < n; i += kThreads)
    out[row * n + i] = values[i] * factor * weight[i];
}

__global__ void __launch_bounds__(kThreads)
    LayerNormKernel(RowTerm term, float* x, const float* __restrict__ weight, const float* __restrict__ bias,
                    float epsilon, int64_t n, float* out) {
  __shared__ float sums[kThreads / kWarp], squares[kThreads / kWarp];
  JoinChain();
  const int64_t row = blockIdx.x;
  float* const values = x + row * n;
  term.AddTo(values, row, n);
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
    LogProbabilitiesKernel(const float* logits, int64_t vocabulary, const uint32_t* __restrict__ targets,
                           float* out) {
  JoinChain();
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

cudaError_t LaunchNorm(const RowNorm& norm, const RowTerm& term, float* x, int64_t rows, int64_t n,
                       float* out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(rows));
  return norm.subtract_mean ? LaunchChained(LayerNormKernel, grid, kThreads, 0, stream, term, x, norm.weight,
                                            norm.bias, norm.epsilon, n, out)
                            : LaunchChained(RmsNormKernel, grid, kThreads, 0, stream, term, x, norm.weight,
                                            norm.epsilon, n, out);
}

}  // namespace

cudaError_t Normalize(const RowNorm& norm, const float* x, int64_t rows, int64_t n, float* out,
                      cudaStream_t stream) {
  // Without a term nothing is written to x.
  return LaunchNorm(norm, {}, const_cast<float*>(x), rows, n, out, stream);
}

cudaError_t AddAndNormalize(const float* x, const float* bias, float scale, const RowNorm& norm, int64_t rows,
                            int64_t n, float* y, float* out, cudaStream_t stream) {
  return LaunchNorm(norm, {x, bias, scale}, y, rows, n, out, stream);
}

cudaError_t LogProbabilities(const float* logits, int64_t vocabulary, const uint32_t* targets, int64_t rows,
                             float* out, cudaStream_t stream) {
  return LaunchChained(LogProbabilitiesKernel, dim3(static_cast<unsigned>(rows)), kThreads, 0, stream, logits,
                       vocabulary, targets, out);
}

}  // namespace isotherm::gpu_worker::cuda
