#include "gpu_worker/cuda/runtime.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"

namespace isotherm::gpu_worker::cuda {

absl::Status ToStatus(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat("CUDA, ", doing, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")");
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message)
                                            : absl::InternalError(message);
}

absl::StatusOr<Stream> MakeStream() {
  cudaStream_t stream = nullptr;
  ISOTHERM_RETURN_IF_ERROR(
      ToStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream"));
  return Stream(stream);
}

absl::StatusOr<Stream> MakeLowPriorityStream() {
  int least = 0, greatest = 0;
  ISOTHERM_RETURN_IF_ERROR(
      ToStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for stream priorities"));
  cudaStream_t stream = nullptr;
  ISOTHERM_RETURN_IF_ERROR(ToStatus(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, least),
                                    "making a stream of low priority"));
  return Stream(stream);
}

absl::StatusOr<Event> MakeEvent() {
  cudaEvent_t event = nullptr;
  ISOTHERM_RETURN_IF_ERROR(ToStatus(cudaEventCreate(&event), "making an event"));
  return Event(event);
}

absl::StatusOr<DeviceMemory> AllocateDevice(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());  // not sticky: later launches must not see it
    size_t free = 0, total = 0;
    ISOTHERM_RETURN_IF_ERROR(ToStatus(cudaMemGetInfo(&free, &total), "asking for the free memory"));
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot allocate ", bytes, " bytes of device memory: ", free, " of ", total, " bytes are free"));
  }
  ISOTHERM_RETURN_IF_ERROR(ToStatus(error, "allocating device memory"));
  return DeviceMemory(memory);
}

absl::StatusOr<PinnedMemory> AllocatePinned(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocDefault);
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes of page-locked host memory"));
  }
  ISOTHERM_RETURN_IF_ERROR(ToStatus(error, "allocating page-locked host memory"));
  return PinnedMemory(memory);
}

absl::StatusOr<std::shared_ptr<void>> RegisterHost(void* base, int64_t bytes, bool read_only,
                                                   const char* what) {
  static base::Mutex* const mutex = new base::Mutex();
  static auto* const registered = new std::map<void*, std::weak_ptr<void>>();
  base::MutexLock lock(mutex);
  if (std::shared_ptr<void> shared = (*registered)[base].lock(); shared != nullptr) return shared;
  const unsigned flags =
      cudaHostRegisterPortable | (read_only ? cudaHostRegisterReadOnly : cudaHostRegisterMapped);
  ISOTHERM_RETURN_IF_ERROR(ToStatus(cudaHostRegister(base, static_cast<size_t>(bytes), flags), what));
  std::shared_ptr<void> owner(base, [](void* memory) { static_cast<void>(cudaHostUnregister(memory)); });
  (*registered)[base] = owner;
  return owner;
}

}  // namespace isotherm::gpu_worker::cuda
