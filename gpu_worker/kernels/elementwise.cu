#include "gpu_worker/kernels/chain.cuh"
#include "gpu_worker/kernels/elementwise.h"
#include "gpu_worker/kernels/launch.h"

namespace isotherm::gpu_worker::cuda {
namespace {

constexpr int kThreads = 256;

// function(i) for every i < count.
template <typename Function>
__global__ void ForEach(int64_t count, Function function) {
  JoinChain();
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    function(i);
}

template <typename Function>
cudaError_t Launch(int64_t count, cudaStream_t stream, const Function& function) {
  return LaunchChained(ForEach<Function>, Blocks(count, kThreads), kThreads, 0, stream, count, function);
}

struct AddOne {
  const float* x;
  const float* bias;
  float scale;
  int64_t n;
  float* y;
  __device__ void operator()(int64_t i) const {
    const float value = bias == nullptr ? x[i] : x[i] + bias[i % n];
    y[i] = fmaf(scale, value, y[i]);
  }
};

struct AddBiasOne {
  const float* bias;
  int64_t n;
  float* y;
  __device__ void operator()(int64_t i) const { y[i] += bias[i % n]; }
};

struct ClearOne {
  float* y;
  __device__ void operator()(int64_t i) const { y[i] = 0; }
};

struct ReluOne {
  float* x;
  // NaN stays, so that a broken input shows.
  __device__ void operator()(int64_t i) const { x[i] = x[i] < 0 ? 0.0f : x[i]; }
};

struct GatherOne {
  const float* x;
  const int32_t* rows;
  int64_t n;
  float* out;
  __device__ void operator()(int64_t i) const { out[i] = x[rows[i / n] * n + i % n]; }
};

}  // namespace

cudaError_t Add(const float* x, const float* bias, float scale, int64_t rows, int64_t n, float* y,
                cudaStream_t stream) {
  return Launch(rows * n, stream, AddOne{x, bias, scale, n, y});
}

cudaError_t AddBias(const float* bias, int64_t rows, int64_t n, float* y, cudaStream_t stream) {
  return Launch(rows * n, stream, AddBiasOne{bias, n, y});
}

cudaError_t Clear(float* y, int64_t count, cudaStream_t stream) { return Launch(count, stream, ClearOne{y}); }

cudaError_t Relu(float* x, int64_t count, cudaStream_t stream) { return Launch(count, stream, ReluOne{x}); }

cudaError_t GatherRows(const float* x, const int32_t* rows, int64_t count, int64_t n, float* out,
                       cudaStream_t stream) {
  return Launch(count * n, stream, GatherOne{x, rows, n, out});
}

}  // namespace isotherm::gpu_worker::cuda
