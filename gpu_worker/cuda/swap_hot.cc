#include "gpu_worker/kernels/swap_hot.h"

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "gpu_worker/cuda/cuda_device.h"

namespace isotherm::gpu_worker {

absl::Status CudaDevice::WriteBeside(const Buffer& buffer, int64_t bytes,
                                     absl::FunctionRef<void(uint8_t*)> fill) {
  if (bytes < 0 || bytes > buffer.bytes()) {
    return absl::InternalError(
        absl::StrCat("write of ", bytes, " bytes into a buffer of ", buffer.bytes(), " bytes"));
  }
  Use();
  if (beside_stream_.get() == nullptr) {
    ISOTHERM_ASSIGN_OR_RETURN(beside_stream_, cuda::MakeLowPriorityStream());
  }
  if (buffer.bytes() > beside_bytes_) {
    beside_bytes_ = 0;
    ISOTHERM_ASSIGN_OR_RETURN(beside_staging_, cuda::AllocatePinned(buffer.bytes()));
    beside_bytes_ = buffer.bytes();
  }
  auto* const staging = static_cast<uint8_t*>(beside_staging_.get());
  fill(staging);
  ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(
      cudaMemcpyAsync(buffer.data(), staging, bytes, cudaMemcpyHostToDevice, beside_stream_.get()),
      "uploading beside passes"));
  return cuda::ToStatus(cudaStreamSynchronize(beside_stream_.get()), "uploading beside passes");
}

absl::Status CudaDevice::SwapHot(const HotSwap* swaps, int64_t count) {
  Use();
  ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(cuda::SwapHot(swaps, count, stream()), "swapping hot neurons"));
  return Wait("swapping hot neurons");
}

}  // namespace isotherm::gpu_worker
