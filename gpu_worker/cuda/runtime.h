#ifndef ISOTHERM_GPU_WORKER_CUDA_RUNTIME_H_
#define ISOTHERM_GPU_WORKER_CUDA_RUNTIME_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Owners of what the CUDA runtime hands out. Each is freed with its object; making one returns the runtime's
// error.
namespace isotherm::gpu_worker::cuda {

// OK, or Internal (ResourceExhausted for memory) that names what was being done and the runtime's reason.
absl::Status ToStatus(cudaError_t error, const char* doing);

template <typename Handle, cudaError_t (*kDestroy)(Handle)>
class Owner {
 public:
  Owner() = default;
  explicit Owner(Handle handle) : handle_(handle) {}
  Owner(Owner&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owner& operator=(Owner&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owner() {
    // Nothing is left to be told: the only failures are those of earlier work, reported where that was
    // awaited.
    if (handle_ != nullptr) static_cast<void>(kDestroy(handle_));
  }
  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

using Stream = Owner<cudaStream_t, cudaStreamDestroy>;
using Event = Owner<cudaEvent_t, cudaEventDestroy>;
using Graph = Owner<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Owner<cudaGraphExec_t, cudaGraphExecDestroy>;
using DeviceMemory = Owner<void*, cudaFree>;
using PinnedMemory = Owner<void*, cudaFreeHost>;

// A stream that does not wait for the legacy default stream.
absl::StatusOr<Stream> MakeStream();
// One whose work gives way to that of the others.
absl::StatusOr<Stream> MakeLowPriorityStream();
absl::StatusOr<Event> MakeEvent();
absl::StatusOr<DeviceMemory> AllocateDevice(int64_t bytes);
// Page-locked host memory that every device can read and write at its own address.
absl::StatusOr<PinnedMemory> AllocatePinned(int64_t bytes);

// Memory of the process made known to the driver, for every device, while any of the results is held: it may
// be registered once only, whoever wants it. `read_only`: devices may not write there, nor may the process.
absl::StatusOr<std::shared_ptr<void>> RegisterHost(void* base, int64_t bytes, bool read_only,
                                                   const char* what);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_CUDA_RUNTIME_H_
