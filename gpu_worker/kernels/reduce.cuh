#ifndef ISOTHERM_GPU_WORKER_KERNELS_REDUCE_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_REDUCE_CUH_

#include <cuda_runtime.h>

#include <cstdint>

// Sums and maxima in a fixed order: equal inputs give equal bits, whatever runs beside them.
namespace isotherm::gpu_worker::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Every lane gets the result.
template <typename T>
__device__ inline T WarpSum(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// NaN wins, so that a broken input shows.
__device__ inline float MaxKeepingNaN(float a, float b) {
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
  return most;
}

__device__ inline float WarpMax(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = MaxKeepingNaN(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

// For a block of kThreads threads; every thread gets the result. `scratch`: kThreads / kWarp values in shared
// memory, free again after the caller's next barrier.
template <int kThreads, typename T>
__device__ inline T BlockSum(T value, T* scratch) {
  value = WarpSum(value);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  T sum = 0;
#pragma unroll
  for (int i = 0; i < kThreads / kWarp; ++i) sum += scratch[i];
  return sum;
}

template <int kThreads>
__device__ inline float BlockMax(float value, float* scratch) {
  value = WarpMax(value);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  float max = scratch[0];
#pragma unroll
  for (int i = 1; i < kThreads / kWarp; ++i) max = MaxKeepingNaN(max, scratch[i]);
  return max;
}

template <typename T>
__host__ __device__ constexpr T CeilDiv(T value, T divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_REDUCE_CUH_
