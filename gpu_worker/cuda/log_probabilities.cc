#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/kernels/row_ops.h"

namespace isotherm::gpu_worker {

void CudaDevice::LogProbabilities(const float* logits, int64_t vocabulary, absl::Span<const uint32_t> targets,
                                  float* out) {
  if (!failure_.ok()) return;
  const absl::StatusOr<const uint32_t*> uploaded = tables_.UploadTargets(targets, stream());
  if (!uploaded.ok()) return Latch(uploaded.status());
  Enqueue("log-probabilities", [&] {
    return cuda::LogProbabilities(logits, vocabulary, *uploaded, static_cast<int64_t>(targets.size()), out,
                                  stream());
  });
}

}  // namespace isotherm::gpu_worker
