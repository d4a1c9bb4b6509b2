#ifndef ISOTHERM_GPU_WORKER_KERNELS_TOKEN_BATCHES_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_TOKEN_BATCHES_CUH_

#include <algorithm>

#include "gpu_worker/kernels/staged_input.cuh"
#include "gpu_worker/kernels/tile_input.cuh"

namespace isotherm::gpu_worker::cuda {

// Shared memory that a block may have for token rows.
inline int64_t StagedBytes() {
  constexpr int64_t kOther = 24 << 10;  // what kernels have besides
  return DeviceAttribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kOther;
}

// Of which so much is enough for kBatch token rows in either form.
template <typename D, int kBatch>
int64_t InputBytes(int64_t columns) {
  if constexpr (HasTiles<D>) {
    return std::max(StagedInput<D, kBatch>::Bytes(columns), TileInput<D, kBatch>::Bytes(columns));
  } else {
    return StagedInput<D, kBatch>::Bytes(columns);
  }
}

// Calls launch.template operator()<D, kBatch>(first row, rows) until all `rows` token rows are covered, as
// many at a time as shared memory has room for.
template <typename Launch>
cudaError_t ForEachBatch(WeightType type, int64_t columns, int64_t rows, const Launch& launch) {
  const int64_t most_bytes = StagedBytes();
  return DispatchWeightType(type, [&]<WeightType kType>() {
    using D = Decoder<kType>;
    for (int64_t first = 0; first < rows;) {
      const int64_t left = rows - first;
      cudaError_t error = cudaSuccess;
      int64_t taken = 1;
      if (left > 4 && InputBytes<D, 8>(columns) <= most_bytes) {
        taken = left < 8 ? left : 8;
        error = launch.template operator()<D, 8>(first, taken);
      } else if (left > 1 && InputBytes<D, 4>(columns) <= most_bytes) {
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

#endif  // ISOTHERM_GPU_WORKER_KERNELS_TOKEN_BATCHES_CUH_
