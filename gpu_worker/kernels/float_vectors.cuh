#ifndef ISOTHERM_GPU_WORKER_KERNELS_FLOAT_VECTORS_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_FLOAT_VECTORS_CUH_

#include <cuda_runtime.h>

// F32 values that are moved together, one or four of them: what rows of any width and those of a multiple of
// four share their code by.
namespace isotherm::gpu_worker::cuda {

__device__ inline float Sum(float a, float b) { return a + b; }
__device__ inline float4 Sum(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

__device__ inline float Product(float a, float factor, float b) { return a * factor * b; }
__device__ inline float4 Product(const float4& a, float factor, const float4& b) {
  return {a.x * factor * b.x, a.y * factor * b.y, a.z * factor * b.z, a.w * factor * b.w};
}

// y + scale * x with one rounding.
__device__ inline float MultiplyAdd(float scale, float x, float y) { return fmaf(scale, x, y); }
__device__ inline float4 MultiplyAdd(float scale, const float4& x, const float4& y) {
  return {fmaf(scale, x.x, y.x), fmaf(scale, x.y, y.y), fmaf(scale, x.z, y.z), fmaf(scale, x.w, y.w)};
}

// sum + the squares.
__device__ inline float AddSquares(float x, float sum) { return fmaf(x, x, sum); }
__device__ inline float AddSquares(const float4& x, float sum) {
  return fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, fmaf(x.x, x.x, sum))));
}

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_FLOAT_VECTORS_CUH_
