#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {

void HostDevice::Break(DeviceFault fault) {
  if (fault == DeviceFault::kOutOfMemory) {
    constexpr int64_t kMoreThanThereIs = int64_t{1} << 60;
    return Latch(Allocate(kMoreThanThereIs, MemoryPurpose::kWorkspace).status());
  }
  health_ = absl::InternalError("it was told to break");
  Latch(health_);
}

}  // namespace isotherm::gpu_worker
