#include "gpu_worker/kernels/chain.cuh"
#include "gpu_worker/kernels/rms_norm.cuh"

namespace isotherm::gpu_worker::cuda {
namespace {

constexpr int kThreads = 1024;

// A token row has one block, so that all of it should be on its way at once.
template <typename Term>
__global__ void __launch_bounds__(kThreads)
    LayerNormKernel(Term term, float* x, const float* __restrict__ weight, const float* __restrict__ bias,
                    float epsilon, int64_t n, float* out) {
  __shared__ float sums[kThreads / kWarp], squares[kThreads / kWarp];
  JoinChain();
  const int64_t row = blockIdx.x;
  float* const values = x + row * n;
  if constexpr (Term::kAdds) {
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      values[i] = term.template AddTo<float>(values[i], term.template First<float>(row, n, i),
                                             term.template Second<float>(row, n, i), i);
    }
  }
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

template <typename Term>
cudaError_t LaunchNorm(const RowNorm& norm, const Term& term, float* x, int64_t rows, int64_t n, float* out,
                       cudaStream_t stream) {
  if (!norm.subtract_mean) return LaunchRmsNorm(norm, term, x, rows, n, out, stream);
  return LaunchChained(LayerNormKernel<Term>, static_cast<unsigned>(rows), kThreads, 0, stream, term, x,
                       norm.weight, norm.bias, norm.epsilon, n, out);
}

}  // namespace

cudaError_t Normalize(const RowNorm& norm, const float* x, int64_t rows, int64_t n, float* out,
                      cudaStream_t stream) {
  // Without a term nothing is written to x.
  return LaunchNorm(norm, NoTerm{}, const_cast<float*>(x), rows, n, out, stream);
}

cudaError_t AddAndNormalize(const RowAddend& addend, const RowNorm& norm, int64_t rows, int64_t n, float* y,
                            float* out, cudaStream_t stream) {
  return LaunchNorm(norm, RowTerm{addend}, y, rows, n, out, stream);
}

cudaError_t LogProbabilities(const float* logits, int64_t vocabulary, const uint32_t* targets, int64_t rows,
                             float* out, cudaStream_t stream) {
  return LaunchChained(LogProbabilitiesKernel, dim3(static_cast<unsigned>(rows)), kThreads, 0, stream, logits,
                       vocabulary, targets, out);
}

}  // namespace isotherm::gpu_worker::cuda
