#ifndef ISOTHERM_GPU_WORKER_CUDA_MEMORY_USE_H_
#define ISOTHERM_GPU_WORKER_CUDA_MEMORY_USE_H_

#include <cstdint>
#include <optional>

namespace isotherm::gpu_worker::cuda {

// Bytes in use on a device, by whomever, as the driver's management library (NVML) counts them. Works before
// this process has a context there, so that two calls tell what a context takes. Absent where the library is.
std::optional<int64_t> UsedDeviceMemory(int device);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_CUDA_MEMORY_USE_H_
