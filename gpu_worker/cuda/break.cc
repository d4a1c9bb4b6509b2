#include "gpu_worker/kernels/break.h"

#include "gpu_worker/cuda/cuda_device.h"

namespace isotherm::gpu_worker {

// The real thing: a kernel that writes where nothing is, an allocation that cannot be.
void CudaDevice::Break(DeviceFault fault) {
  LeaveGraph();
  if (fault == DeviceFault::kOutOfMemory) {
    constexpr int64_t kMoreThanThereIs = int64_t{1} << 50;
    return Latch(cuda::AllocateDevice(kMoreThanThereIs).status());
  }
  Latch(cuda::ToStatus(cuda::WriteNowhere(stream()), "breaking the device"));
}

}  // namespace isotherm::gpu_worker
