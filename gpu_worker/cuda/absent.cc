// Stands in for the CUDA device in builds without the CUDA toolkit.
#include "gpu_worker/cuda/make_cuda_device.h"

namespace isotherm::gpu_worker {

absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(const CudaDeviceOptions&) {
  return absl::FailedPreconditionError(
      "this build has no device cuda: install the CUDA toolkit (nvcc), configure and build again, or use "
      "--device=host");
}

}  // namespace isotherm::gpu_worker
