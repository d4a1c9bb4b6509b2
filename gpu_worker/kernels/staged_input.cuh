#ifndef ISOTHERM_GPU_WORKER_KERNELS_STAGED_INPUT_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_STAGED_INPUT_CUH_

#include "gpu_worker/kernels/decode.cuh"
#include "gpu_worker/kernels/launch.h"
#include "gpu_worker/kernels/reduce.cuh"

namespace isotherm::gpu_worker::cuda {

// Columns [column, column + 4) of a token row, zero from `columns` on.
__device__ inline float4 FourColumns(const float* row, int64_t column, int64_t columns) {
  // Rows of a multiple of four columns are aligned like the first.
  if (columns % 4 == 0 && column < columns) return *reinterpret_cast<const float4*>(row + column);
  const auto at = [&](int64_t i) { return i < columns ? row[i] : 0.0f; };
  return {at(column), at(column + 1), at(column + 2), at(column + 3)};
}

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
    constexpr int kAhead = kBatch < 4 ? 4 : 1;  // slots whose values are on their way at once
    for (int64_t first = threadIdx.x; first < row_slots_; first += kAhead * blockDim.x) {
      float4 values[kAhead][kBatch];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int64_t column = FirstColumn(first + a * blockDim.x);
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          values[a][b] = b < batch ? FourColumns(x + b * columns, column, columns) : float4{0, 0, 0, 0};
        }
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int64_t slot = first + a * blockDim.x;
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          if (slot < row_slots_) memory_[b * row_slots_ + slot] = values[a][b];
        }
      }
    }
    __syncthreads();
  }

  __device__ float4 At(int b, int64_t chunk, int run, int half) const {
    return memory_[b * row_slots_ + ((chunk / kWarp * D::kRuns + run) * 2 + half) * kWarp + chunk % kWarp];
  }

 private:
  static __device__ int64_t FirstColumn(int64_t slot) {
    const int64_t group = slot / kWarp;
    const int64_t chunk = group / (2 * D::kRuns) * kWarp + slot % kWarp;
    return D::Column(chunk, static_cast<int>(group / 2 % D::kRuns)) + 4 * (group % 2);
  }

  float4* memory_;
  int64_t row_slots_;
};

// Eight columns of a staged row.
struct StagedRun {
  float4 low, high;
};

__device__ inline float DotRun(const float (&weights)[kRunColumns], const StagedRun& x, float sum) {
  sum = fmaf(weights[0], x.low.x, sum);
  sum = fmaf(weights[1], x.low.y, sum);
  sum = fmaf(weights[2], x.low.z, sum);
  sum = fmaf(weights[3], x.low.w, sum);
  sum = fmaf(weights[4], x.high.x, sum);
  sum = fmaf(weights[5], x.high.y, sum);
  sum = fmaf(weights[6], x.high.z, sum);
  return fmaf(weights[7], x.high.w, sum);
}

// sums[r][b] += a chunk of row r . staged row b. What is read of x serves all rows.
template <typename D, int kRows, int kBatch>
__device__ inline void DotChunks(const typename D::Raw (&raw)[kRows], const StagedInput<D, kBatch>& input,
                                 int64_t chunk, float (&sums)[kRows][kBatch]) {
  float weights[kRows][D::kRuns][kRunColumns];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if constexpr (HasOneScale<D>) {
      D::Integers(raw[r], weights[r]);
    } else {
      D::Decode(raw[r], chunk, weights[r]);
    }
  }
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
    float parts[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) parts[r] = HasOneScale<D> ? 0.0f : sums[r][b];
#pragma unroll
    for (int run = 0; run < D::kRuns; ++run) {
      const StagedRun x{input.At(b, chunk, run, 0), input.At(b, chunk, run, 1)};
#pragma unroll
      for (int r = 0; r < kRows; ++r) parts[r] = DotRun(weights[r][run], x, parts[r]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if constexpr (HasOneScale<D>) {
        sums[r][b] = fmaf(D::Scale(raw[r]), parts[r], sums[r][b]);
      } else {
        sums[r][b] = parts[r];
      }
    }
  }
}

// What the lanes of a warp read of a row: of every `parts` times 32 chunks those of the part.
struct RowPart {
  int part = 0;
  int parts = 1;
};

// sums[r][b] = the part of rows[r] . staged row b, the same bits in every lane. A row's sum depends on
// nothing but the row, its input and the part: lanes take chunks in turn, then the lanes are added as a tree.
// Null rows count as zero.
template <typename D, int kRows, int kBatch>
__device__ inline void DotRows(const uint8_t* const (&rows)[kRows], int64_t columns,
                               const StagedInput<D, kBatch>& input, float (&sums)[kRows][kBatch],
                               RowPart part = {}) {
  // Chunks of each row on their way at once: 128 bytes a lane where registers allow.
  constexpr int kAhead = kRows > 2 ? (kBatch == 1 ? 1 : 2) : sizeof(typename D::Raw) * kRows <= 16 ? 8 : 4;
  const int64_t chunks = Chunks<D>(columns);
  const int64_t step = int64_t{kWarp} * part.parts;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) sums[r][b] = 0;
  }
  for (int64_t first = threadIdx.x % kWarp + kWarp * part.part; first < chunks; first += kAhead * step) {
    typename D::Raw raw[kAhead][kRows] = {};
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (rows[r] != nullptr && first + a * step < chunks)
          raw[a][r] = D::Load(rows[r], columns, first + a * step);
      }
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (first + a * step < chunks) DotChunks<D>(raw[a], input, first + a * step, sums);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) sums[r][b] = WarpSum(sums[r][b]);
  }
}

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_STAGED_INPUT_CUH_
