#ifndef ISOTHERM_GPU_WORKER_KERNELS_TILE_STEP_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_TILE_STEP_CUH_

#include "gpu_worker/kernels/decode.cuh"
#include "gpu_worker/kernels/reduce.cuh"
#include "gpu_worker/kernels/staged_input.cuh"

// Token rows in shared memory as factors of products on tensor cores, for the weight types that can be the
// other factor as they are or nearly so.
//
// A warp multiplies a tile of sixteen weight rows in steps: in step s lane 4 g + t loads chunk 4 s + t of the
// rows g and g + 8. Those registers are the first factor of mma instructions (PTX ISA, "Matrix fragments for
// mma.m16n8k16" and "... mma.m16n8k32") if the second has its rows in the same order, whatever the order is.
// A token value becomes two terms, in two of the eight columns of the second factor.
//   Sums                            of a warp, zero at first
//   MultiplyAdd(rows, step, sums)   sums += the step of rows g and g + 8 . the token rows
//   Store(sums, parts)              parts [kTileRows, kBatch] = what the warp's lanes have together
namespace isotherm::gpu_worker::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kStepChunks = 4;  // chunks of a row that a warp multiplies in a step

__device__ inline int LaneRow() { return static_cast<int>(threadIdx.x) % kWarp / 4; }      // g
__device__ inline int LaneChunk() { return static_cast<int>(threadIdx.x) % kStepChunks; }  // t

// Counts within a row are plain int: wide ones would take registers from loads.
template <typename D>
__host__ __device__ inline int TileSteps(int64_t columns) {
  return static_cast<int>(CeilDiv<int64_t>(Chunks<D>(columns), kStepChunks));
}

template <typename D, int kBatch>
class TileInput;

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_TILE_STEP_CUH_
