#ifndef ISOTHERM_GPU_WORKER_KERNELS_CHAIN_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_CHAIN_CUH_

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "gpu_worker/kernels/launch.h"

// Chained kernels: from compute capability 9.0 on a kernel's blocks may take their places while the ones
// before it still run (programmatic dependent launch), so that launching a small kernel costs next to
// nothing. Every kernel that is launched by LaunchChained calls LetNextStart and AwaitPrevious, in each of
// its blocks and before it touches memory that another kernel writes or reads; one that is launched in the
// usual way may. As each waits for all of the one before it, so it has waited for all before that.
// What another kernel writes is no __restrict__ input: such loads may be moved up, before the wait.
namespace isotherm::gpu_worker::cuda {

__device__ inline void LetNextStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ inline void AwaitPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Has the second-level cache fetch a line of 128 bytes. What lies there may yet be written.
__device__ inline void FetchLine(const uint8_t* line) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
}

// For kernels that have nothing to do before.
__device__ inline void JoinChain() {
  LetNextStart();
  AwaitPrevious();
}

// Blocks in clusters of so many, which divides them; one: no clusters, which older devices do not have.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchChainedClusters(void (*kernel)(Parameters...), dim3 grid, unsigned cluster, int threads,
                                  int64_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  constexpr int kLeastMajor = 9;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  if (DeviceAttribute(cudaDevAttrComputeCapabilityMajor) >= kLeastMajor)
    config.numAttrs = cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...);
}

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchChained(void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared_bytes,
                          cudaStream_t stream, Arguments&&... arguments) {
  return LaunchChainedClusters(kernel, grid, 1, threads, shared_bytes, stream,
                               std::forward<Arguments>(arguments)...);
}

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_CHAIN_CUH_
