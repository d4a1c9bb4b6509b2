#ifndef ISOTHERM_GPU_WORKER_KERNELS_TILE_INPUT_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_TILE_INPUT_CUH_

#include "gpu_worker/kernels/f16_tile_input.cuh"
#include "gpu_worker/kernels/quant_tile_input.cuh"

namespace isotherm::gpu_worker::cuda {

template <typename D>
concept HasTiles = requires {
  TileInput<D, 1>::kChunkTerms;
};

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_TILE_INPUT_CUH_
