#ifndef ISOTHERM_GPU_WORKER_KERNELS_RMS_NORM_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_RMS_NORM_CUH_

#include <cooperative_groups.h>

#include <cstdint>

#include "gpu_worker/kernels/chain.cuh"
#include "gpu_worker/kernels/float_vectors.cuh"
#include "gpu_worker/kernels/reduce.cuh"
#include "gpu_worker/kernels/row_ops.h"

// RMS norm of rows of F32, and what is added to a row just before: one order of sums, whatever that is.
//
// From compute capability 9.0 on the blocks of a cluster share a row, so that it is read by several
// multiprocessors at once. Before, a row has one block.
namespace isotherm::gpu_worker::cuda {

inline constexpr int kNormThreads = 256;
inline constexpr unsigned kNormCluster = 8;  // blocks, where there are clusters

// The part of a row that a block has, among those that share it.
class RowCluster {
 public:
  // Tells the others that this block has begun: only then may they write to its shared memory.
#if __CUDA_ARCH__ >= 900
  __device__ RowCluster() : part(cooperative_groups::this_cluster().block_rank()), parts(kNormCluster) {
    cooperative_groups::this_cluster().barrier_arrive();
  }
#else
  __device__ RowCluster() : part(0), parts(1) {}
#endif

  // In the order of the warps, then of the blocks. Once, by all threads; all get the sum.
  __device__ float Sum(float value) const {
    __shared__ float warp_sums[kNormThreads / kWarp];
    float sum = BlockSum<kNormThreads>(value, warp_sums);
#if __CUDA_ARCH__ >= 900
    __shared__ float block_sums[kNormCluster];
    auto cluster = cooperative_groups::this_cluster();
    cluster.barrier_wait();
    if (threadIdx.x < kNormCluster) *cluster.map_shared_rank(&block_sums[part], threadIdx.x) = sum;
    cluster.sync();
    sum = 0;
#pragma unroll
    for (unsigned i = 0; i < kNormCluster; ++i) sum += block_sums[i];
#endif
    return sum;
  }

  const unsigned part, parts;
};

// A term of a norm says what is added to the row.
//   kAdds                         anything at all
//   First(row, n, i)              values that are at hand when the kernel's turn has come
//   Await()                       by all threads, until there are more
//   Second(row, n, i)             those; called for many i before any is used
//   Conclude()                    by all threads, once they are asked for
//   AddTo(y, first, second, i)    y with both added
// Values: float, or float4 where n is a multiple of four; i counts them.
struct NoTerm {
  static constexpr bool kAdds = false;
};

struct RowTerm : RowAddend {
  static constexpr bool kAdds = true;

  template <typename Values>
  __device__ Values First(int64_t row, int64_t n, int64_t i) const {
    return reinterpret_cast<const Values*>(x + row * n)[i];
  }
  __device__ void Await() {}
  template <typename Values>
  __device__ Values Second(int64_t, int64_t, int64_t i) const {
    return bias == nullptr ? Values{} : reinterpret_cast<const Values*>(bias)[i];
  }
  __device__ void Conclude() {}
  template <typename Values>
  __device__ Values AddTo(const Values& y, const Values& first, const Values& second, int64_t) const {
    return MultiplyAdd(scale, Sum(first, second), y);
  }
};

// One row: x += term, out = norm(x). The first columns of each thread, as many as most models have, are read
// once and stay in registers.
template <typename Values, typename Term>
__device__ void NormalizeRow(Term& term, float* x, const float* weight, float epsilon, int64_t n,
                             float* out) {
#if __CUDA_ARCH__ >= 900
  constexpr int kHeld = 2;
#else
  constexpr int kHeld = 8;
#endif
  const RowCluster cluster;
  const int64_t row = blockIdx.x / cluster.parts;
  const int64_t count = n / static_cast<int64_t>(sizeof(Values) / sizeof(float));
  const int64_t step = cluster.parts * kNormThreads;
  const int64_t first = cluster.part * kNormThreads + threadIdx.x;
  const int64_t rest = first + kHeld * step;
  auto* const values = reinterpret_cast<Values*>(x + row * n);
  auto* const to = reinterpret_cast<Values*>(out + row * n);
  const auto* const weights = reinterpret_cast<const Values*>(weight);
  const auto for_each_held = [&](const auto& use) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (first + k * step < count) use(k, first + k * step);
    }
  };
  Values held[kHeld], factors[kHeld];
  LetNextStart();
  // Which no other kernel writes.
  for_each_held([&](int k, int64_t i) { factors[k] = weights[i]; });
  AwaitPrevious();
  for_each_held([&](int k, int64_t i) { held[k] = values[i]; });
  if constexpr (Term::kAdds) {
    Values firsts[kHeld], seconds[kHeld];
    for_each_held([&](int k, int64_t i) { firsts[k] = term.template First<Values>(row, n, i); });
    term.Await();
    for_each_held([&](int k, int64_t i) { seconds[k] = term.template Second<Values>(row, n, i); });
    term.Conclude();
    for_each_held(
        [&](int k, int64_t i) { values[i] = held[k] = term.AddTo(held[k], firsts[k], seconds[k], i); });
    for (int64_t i = rest; i < count; i += step) {
      values[i] = term.AddTo(values[i], term.template First<Values>(row, n, i),
                             term.template Second<Values>(row, n, i), i);
    }
  }
  float sum = 0;
  for_each_held([&](int k, int64_t) { sum = AddSquares(held[k], sum); });
  for (int64_t i = rest; i < count; i += step) sum = AddSquares(values[i], sum);
  const float factor = 1.0f / sqrtf(cluster.Sum(sum) / static_cast<float>(n) + epsilon);
  for_each_held([&](int k, int64_t i) { to[i] = Product(held[k], factor, factors[k]); });
  for (int64_t i = rest; i < count; i += step) to[i] = Product(values[i], factor, weights[i]);
}

template <typename Term>
__global__ void __launch_bounds__(kNormThreads)
    RmsNormKernel(Term term, float* x, const float* __restrict__ weight, float epsilon, int64_t n,
                  float* out) {
  if (n % 4 == 0) {
    NormalizeRow<float4>(term, x, weight, epsilon, n, out);
  } else {
    NormalizeRow<float>(term, x, weight, epsilon, n, out);
  }
}

template <typename Term>
cudaError_t LaunchRmsNorm(const RowNorm& norm, const Term& term, float* x, int64_t rows, int64_t n,
                          float* out, cudaStream_t stream) {
  const auto kernel = RmsNormKernel<Term>;
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  // What the code was compiled for, which may be older than the device.
  constexpr int kClusterVersion = 90;
  const unsigned cluster = attributes.ptxVersion >= kClusterVersion ? kNormCluster : 1;
  return LaunchChainedClusters(kernel, static_cast<unsigned>(rows) * cluster, cluster, kNormThreads, 0,
                               stream, term, x, norm.weight, norm.epsilon, n, out);
}

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_RMS_NORM_CUH_
