#ifndef ISOTHERM_GPU_WORKER_KERNELS_STAGED_INPUT_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_STAGED_INPUT_CUH_

#include "gpu_worker/kernels/decode.cuh"
#include "gpu_worker/kernels/launch.h"
#include "gpu_worker/kernels/reduce.cuh"

namespace isotherm::gpu_worker::cuda {

// Shared memory that every device since compute capability 8.0 grants a block.
inline constexpr int64_t kLeastSharedBytes = 96 << 10;

// Token rows in shared memory, in the order in which a warp multiplies them with the chunks of a packed row:
// the 16 bytes that its 32 lanes read together lie side by side, so no two lanes meet in a bank.
template <typename D, int kBatch>
class StagedInput {
 public:
  static __host__ __device__ int64_t RowSlots(int64_t columns) {
    return CeilDiv<int64_t>(Chunks<D>(columns), kWarp) * kWarp * D::kRuns * 2;
  }
  static int64_t Bytes(int64_t columns) { return kBatch * RowSlots(columns) * sizeof(float4); }

  __device__ StagedInput(float4* memory, int64_t columns) : memory_(memory), row_slots_(RowSlots(columns)) {}

  // By all threads of the block; ends with a barrier. Rows past `batch` and columns past the last are zero.
  __device__ void Fill(const float* x, int64_t columns, int64_t batch) {
    for (int64_t slot = threadIdx.x; slot < row_slots_; slot += blockDim.x) {
      const int64_t group = slot / kWarp;
      const int64_t chunk = group / (2 * D::kRuns) * kWarp + slot % kWarp;
      const int64_t column = D::Column(chunk, static_cast<int>(group / 2 % D::kRuns)) + 4 * (group % 2);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        memory_[b * row_slots_ + slot] =
            b < batch ? Four(x + b * columns, column, columns) : float4{0, 0, 0, 0};
      }
    }
    __syncthreads();
  }

  __device__ float4 At(int b, int64_t chunk, int run, int half) const {
    return memory_[b * row_slots_ + ((chunk / kWarp * D::kRuns + run) * 2 + half) * kWarp + chunk % kWarp];
  }

 private:
  static __device__ float4 Four(const float* row, int64_t column, int64_t columns) {
    // Rows of a multiple of four columns are aligned like the first.
    if (columns % 4 == 0 && column < columns) return *reinterpret_cast<const float4*>(row + column);
    const auto at = [&](int64_t i) { return i < columns ? row[i] : 0.0f; };
    return {at(column), at(column + 1), at(column + 2), at(column + 3)};
  }

  float4* memory_;
  int64_t row_slots_;
};

// sums[r][b] = rows[r] . staged row b, the same bits in every lane. A row's sum depends on nothing but the
// row and its input: lanes take chunks in turn, then the lanes are added as a tree. Null rows count as zero.
template <typename D, int kRows, int kBatch>
__device__ inline void DotRows(const uint8_t* const (&rows)[kRows], int64_t columns,
                               const StagedInput<D, kBatch>& input, float (&sums)[kRows][kBatch]) {
  // Chunks of each row on their way at once: 128 bytes a lane where registers allow.
  constexpr int kAhead = sizeof(typename D::Raw) * kRows <= 16 ? 8 : 4;
  const int64_t chunks = Chunks<D>(columns);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) sums[r][b] = 0;
  }
  for (int64_t first = threadIdx.x % kWarp; first < chunks; first += kAhead * kWarp) {
    typename D::Raw raw[kAhead][kRows];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (rows[r] != nullptr && first + a * kWarp < chunks)
          raw[a][r] = D::Load(rows[r], columns, first + a * kWarp);
      }
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t chunk = first + a * kWarp;
      if (chunk >= chunks) break;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (rows[r] == nullptr) continue;
        float weights[D::kRuns][kRunColumns];
        D::Decode(raw[a][r], chunk, weights);
#pragma unroll
        for (int run = 0; run < D::kRuns; ++run) {
#pragma unroll
          for (int b = 0; b < kBatch; ++b) {
            const float4 low = input.At(b, chunk, run, 0), high = input.At(b, chunk, run, 1);
            float sum = sums[r][b];
            sum = fmaf(weights[run][0], low.x, sum);
            sum = fmaf(weights[run][1], low.y, sum);
            sum = fmaf(weights[run][2], low.z, sum);
            sum = fmaf(weights[run][3], low.w, sum);
            sum = fmaf(weights[run][4], high.x, sum);
            sum = fmaf(weights[run][5], high.y, sum);
            sum = fmaf(weights[run][6], high.z, sum);
            sums[r][b] = fmaf(weights[run][7], high.w, sum);
          }
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) sums[r][b] = WarpSum(sums[r][b]);
  }
}

// Calls launch.template operator()<D, kBatch>(first row, rows) until all `rows` token rows are covered, as
// many at a time as shared memory has room for.
template <typename Launch>
cudaError_t ForEachBatch(WeightType type, int64_t columns, int64_t rows, const Launch& launch) {
  return DispatchWeightType(type, [&]<WeightType kType>() {
    using D = Decoder<kType>;
    for (int64_t first = 0; first < rows;) {
      const int64_t left = rows - first;
      cudaError_t error = cudaSuccess;
      int64_t taken = 1;
      if (left > 4 && StagedInput<D, 8>::Bytes(columns) <= kLeastSharedBytes) {
        taken = left < 8 ? left : 8;
        error = launch.template operator()<D, 8>(first, taken);
      } else if (left > 1 && StagedInput<D, 4>::Bytes(columns) <= kLeastSharedBytes) {
        taken = left < 4 ? left : 4;
        error = launch.template operator()<D, 4>(first, taken);
      } else {
        error = launch.template operator()<D, 1>(first, taken);
      }
      if (error != cudaSuccess) return error;
      first += taken;
    }
    return cudaSuccess;
  });
}

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_STAGED_INPUT_CUH_
