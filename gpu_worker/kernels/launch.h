#ifndef ISOTHERM_GPU_WORKER_KERNELS_LAUNCH_H_
#define ISOTHERM_GPU_WORKER_KERNELS_LAUNCH_H_

#include <cuda_runtime.h>

#include <cstdint>

// What every launch shares. Launch functions know device pointers, extents, strides and a stream; they return
// the error of the launch and never wait, allocate or read device memory.
namespace isotherm::gpu_worker::cuda {

inline int DeviceAttribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}
inline int Multiprocessors() { return DeviceAttribute(cudaDevAttrMultiProcessorCount); }

// Blocks enough for `items`, `per_block` of them each. Grids beyond this limit stride.
inline unsigned Blocks(int64_t items, int64_t per_block) {
  constexpr int64_t kMostBlocks = 1 << 20;
  const int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks > kMostBlocks ? kMostBlocks : blocks);
}

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_LAUNCH_H_
