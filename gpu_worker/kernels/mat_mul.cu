#include <algorithm>

#include "gpu_worker/kernels/mat_mul.h"
#include "gpu_worker/kernels/staged_input.cuh"

namespace isotherm::gpu_worker::cuda {
namespace {

constexpr int kThreads = 512;

template <typename D, int kBatch>
__global__ void __launch_bounds__(kThreads, kBatch == 1 ? 2 : 1)
    MatMulKernel(const uint8_t* __restrict__ weights, int64_t stride, int64_t outputs, int64_t columns,
                 const float* __restrict__ bias, const float* __restrict__ x, int64_t batch,
                 float* __restrict__ y) {
  extern __shared__ float4 memory[];
  // Two rows of weights share what they read of x where that is the larger part of the traffic.
  constexpr int kRows = kBatch >= 4 ? 2 : 1;
  StagedInput<D, kBatch> input(memory, columns);
  input.Fill(x, columns, batch);
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  for (int64_t first = warp * kRows; first < outputs; first += warps * kRows) {
    const uint8_t* rows[kRows];
    float sums[kRows][kBatch];
#pragma unroll
    for (int r = 0; r < kRows; ++r) rows[r] = first + r < outputs ? weights + (first + r) * stride : nullptr;
    DotRows<D>(rows, columns, input, sums);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (lane == b && b < batch && first + r < outputs) {
          y[b * outputs + first + r] = bias == nullptr ? sums[r][b] : sums[r][b] + bias[first + r];
        }
      }
    }
  }
}

template <typename D>
__device__ void UnpackChunk(const uint8_t* row, int64_t columns, int64_t chunk, float scale, bool accumulate,
                            float* out) {
  float weights[D::kRuns][kRunColumns];
  D::Decode(D::Load(row, columns, chunk), chunk, weights);
#pragma unroll
  for (int run = 0; run < D::kRuns; ++run) {
    const int64_t column = D::Column(chunk, run);
#pragma unroll
    for (int i = 0; i < kRunColumns; ++i) {
      if (column + i < columns) {
        out[column + i] = fmaf(scale, weights[run][i], accumulate ? out[column + i] : 0.0f);
      }
    }
  }
}

// Without indices row i is the matrix's row offset + i.
template <typename D>
__global__ void UnpackKernel(const uint8_t* __restrict__ weights, int64_t stride, int64_t columns,
                             EmbedRows rows, float* out) {
  const int64_t chunks = Chunks<D>(columns);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows.count * chunks;
       i += step) {
    const int64_t row = rows.offset + (rows.indices == nullptr ? i / chunks : rows.indices[i / chunks]);
    UnpackChunk<D>(weights + row * stride, columns, i % chunks, rows.scale, rows.accumulate,
                   out + i / chunks * columns);
  }
}

}  // namespace

cudaError_t MatMul(const kernels::WeightMatrix& weight, const float* bias, const float* x, int64_t rows,
                   float* y, cudaStream_t stream) {
  // Two blocks of sixteen warps keep a multiprocessor's loads in flight, and x is staged only so often.
  constexpr int64_t kBlocksEach = 2;
  const int64_t most_blocks = kBlocksEach * Multiprocessors();
  return ForEachBatch(weight.type, weight.columns, rows,
                      [&]<typename D, int kBatch>(int64_t first, int64_t batch) {
                        const auto kernel = MatMulKernel<D, kBatch>;
                        const int64_t shared = StagedInput<D, kBatch>::Bytes(weight.columns);
                        const cudaError_t error = cudaFuncSetAttribute(
                            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
                        if (error != cudaSuccess) return error;
                        const int64_t rows_per_block = kThreads / kWarp * (kBatch >= 4 ? 2 : 1);
                        const int64_t blocks = std::min(most_blocks, CeilDiv(weight.rows, rows_per_block));
                        kernel<<<static_cast<unsigned>(blocks), kThreads, shared, stream>>>(
                            weight.data, weight.stride_bytes, weight.rows, weight.columns, bias,
                            x + first * weight.columns, batch, y + first * weight.rows);
                        return cudaGetLastError();
                      });
}

cudaError_t Unpack(const kernels::WeightMatrix& weight, int64_t first, int64_t count, float* out,
                   cudaStream_t stream) {
  return Embed(weight, {.offset = first, .count = count}, out, stream);
}

cudaError_t Embed(const kernels::WeightMatrix& weight, const EmbedRows& rows, float* out,
                  cudaStream_t stream) {
  constexpr int kUnpackThreads = 256;
  return DispatchWeightType(weight.type, [&]<WeightType kType>() {
    using D = Decoder<kType>;
    const unsigned blocks = Blocks(rows.count * Chunks<D>(weight.columns), kUnpackThreads);
    UnpackKernel<D>
        <<<blocks, kUnpackThreads, 0, stream>>>(weight.data, weight.stride_bytes, weight.columns, rows, out);
    return cudaGetLastError();
  });
}

}  // namespace isotherm::gpu_worker::cuda
