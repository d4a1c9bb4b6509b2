#ifndef ISOTHERM_GPU_WORKER_KERNELS_BLOCK_SHARE_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_BLOCK_SHARE_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "gpu_worker/kernels/sparse_ffn.h"

namespace isotherm::gpu_worker::cuda {

// Both parts in one grid, the bus's first, as they take longest.
struct Shares {
  FfnParts parts;
  unsigned bus_blocks;
  unsigned hot_blocks;

  unsigned all_blocks() const { return bus_blocks + hot_blocks; }
};

// The block's own part, and which of its neurons.
struct BlockShare {
  const bool on_bus;
  const FfnPart& part;
  int64_t begin, end;

  __device__ explicit BlockShare(const Shares& shares)
      : on_bus(blockIdx.x < shares.bus_blocks), part(on_bus ? shares.parts.bus : shares.parts.hot) {
    const int64_t block = on_bus ? blockIdx.x : blockIdx.x - shares.bus_blocks;
    const int64_t blocks = on_bus ? shares.bus_blocks : shares.hot_blocks;
    begin = part.neurons.count * block / blocks;
    end = part.neurons.count * (block + 1) / blocks;
  }
};

// Parts of the token rows from `first` on.
inline FfnParts FromRow(FfnParts parts, int64_t first) {
  for (FfnPart* part : {&parts.bus, &parts.hot}) part->values += first * part->neurons.count;
  return parts;
}

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_BLOCK_SHARE_CUH_
