#include "common/neuron/mask.h"
#include "gpu_worker/kernels/activation.cuh"
#include "gpu_worker/kernels/decode.cuh"
#include "gpu_worker/kernels/dense.h"
#include "gpu_worker/kernels/launch.h"
#include "gpu_worker/kernels/reduce.cuh"
#include "gpu_worker/kernels/tf32.cuh"

namespace isotherm::gpu_worker::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void SplitRowsKernel(const float* __restrict__ x, int64_t rows, int64_t columns, SplitMatrix out) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * columns;
       i += step) {
    const int64_t at = i / columns * out.stride + i % columns;
    SplitTf32(x[i], out.high[at], out.low[at]);
  }
}

// Eight consecutive columns, or as many of them as there are. Rows whose stride is a multiple of four take
// sixteen bytes at once.
__device__ void StoreRun(const float (&values)[kRunColumns], int64_t column, int64_t columns, int64_t stride,
                         float* row) {
  if (stride % 4 == 0 && column + kRunColumns <= columns) {
    auto* const to = reinterpret_cast<float4*>(row + column);
    to[0] = {values[0], values[1], values[2], values[3]};
    to[1] = {values[4], values[5], values[6], values[7]};
    return;
  }
#pragma unroll
  for (int c = 0; c < kRunColumns; ++c) {
    if (column + c < columns) row[column + c] = values[c];
  }
}

// A thread has a chunk of a row.
template <typename D>
__global__ void UnpackSplitKernel(const uint8_t* __restrict__ weights, int64_t stride, int64_t columns,
                                  int64_t count, int64_t padded, SplitMatrix out) {
  const int64_t chunks = Chunks<D>(columns);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < padded * chunks;
       i += step) {
    const int64_t row = i / chunks, chunk = i % chunks;
    float values[D::kRuns][kRunColumns] = {};
    if (row < count) D::Decode(D::Load(weights + row * stride, columns, chunk), chunk, values);
#pragma unroll
    for (int run = 0; run < D::kRuns; ++run) {
      const int64_t column = D::Column(chunk, run);
      if (out.low != nullptr) {
        float low[kRunColumns];
#pragma unroll
        for (int c = 0; c < kRunColumns; ++c) SplitTf32(values[run][c], values[run][c], low[c]);
        StoreRun(low, column, columns, out.stride, out.low + row * out.stride);
      }
      StoreRun(values[run], column, columns, out.stride, out.high + row * out.stride);
    }
  }
}

constexpr int64_t kActivateRows = 32;  // of one block

// A thread has a neuron, for kActivateRows token rows; neighbours read and write side by side.
__global__ void ActivateDenseKernel(NeuronSet neurons, GateSource gates, UpProducts ups, FfnRows rows,
                                    GateActivation activation, SplitMatrix values, FfnCounters* counters) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const bool is_neuron = k < neurons.count;
  const int32_t id = is_neuron ? Id(neurons, k) : 0;
  const float bias = is_neuron ? Bias(neurons, k, gates.bias_offset) : 0.0f;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kActivateRows;
  const int64_t end = min(first + kActivateRows, rows.rows);
  unsigned computed = 0, active = 0;
  for (int64_t row = first; k < values.stride && row < end; ++row) {
    float value = 0;
    if (is_neuron && Wanted(neurons, rows.masks, row, k)) {
      ++computed;
      value = Activate(activation, gates.products[row * gates.stride + (gates.by_id ? id : k)] + bias);
      if (value != 0 && ups.products != nullptr) {
        value *= UpFactor(activation, ups.products[row * ups.stride + k]);
      }
      active += value != 0;
    }
    const int64_t at = row * values.stride + k;
    SplitTf32(value, values.high[at], values.low[at]);
  }
  if (active != 0 && neurons.firings != nullptr) atomicAdd(&neurons.firings[id], active);
  computed = WarpSum(computed);
  active = WarpSum(active);
  if (threadIdx.x % kWarp == 0 && computed != 0) {
    atomicAdd(&counters->computed, static_cast<unsigned long long>(computed));
    atomicAdd(&counters->active, static_cast<unsigned long long>(active));
  }
}

}  // namespace

cudaError_t SplitRows(const float* x, int64_t rows, int64_t columns, const SplitMatrix& out,
                      cudaStream_t stream) {
  SplitRowsKernel<<<Blocks(rows * columns, kThreads), kThreads, 0, stream>>>(x, rows, columns, out);
  return cudaGetLastError();
}

cudaError_t UnpackSplit(const kernels::WeightMatrix& weight, int64_t first, int64_t count, int64_t padded,
                        const SplitMatrix& out, cudaStream_t stream) {
  return DispatchWeightType(weight.type, [&]<WeightType kType>() {
    using D = Decoder<kType>;
    UnpackSplitKernel<D><<<Blocks(padded * Chunks<D>(weight.columns), kThreads), kThreads, 0, stream>>>(
        weight.data + first * weight.stride_bytes, weight.stride_bytes, weight.columns, count, padded, out);
    return cudaGetLastError();
  });
}

cudaError_t ActivateDense(const NeuronSet& neurons, const GateSource& gates, const UpProducts& ups,
                          const FfnRows& rows, const GateActivation& activation, const SplitMatrix& values,
                          FfnCounters* counters, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(CeilDiv<int64_t>(values.stride, kThreads)),
                  static_cast<unsigned>(CeilDiv<int64_t>(rows.rows, kActivateRows)));
  ActivateDenseKernel<<<grid, kThreads, 0, stream>>>(neurons, gates, ups, rows, activation, values, counters);
  return cudaGetLastError();
}

}  // namespace isotherm::gpu_worker::cuda
