#ifndef ISOTHERM_GPU_WORKER_CUDA_MAKE_CUDA_DEVICE_H_
#define ISOTHERM_GPU_WORKER_CUDA_MAKE_CUDA_DEVICE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "gpu_worker/device/device.h"

namespace isotherm::gpu_worker {

struct CudaDeviceOptions {
  int loader_threads = 1;
  // Hold decode passes as CUDA graphs.
  bool graphs = true;
};

// Device `cuda` on the first visible GPU. FailedPrecondition, saying what is missing, in a build without
// CUDA, without a driver, without a GPU of compute capability 8.0 or later and without cuBLAS.
absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(const CudaDeviceOptions& options);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_CUDA_MAKE_CUDA_DEVICE_H_
