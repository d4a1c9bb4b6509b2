#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {

void HostDevice::LogProbabilities(const float* logits, int64_t vocabulary, absl::Span<const uint32_t> targets,
                                  float* out) {
  if (!failure_.ok()) return;
  pool_.ParallelFor(static_cast<int64_t>(targets.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = logits + i * vocabulary;
      out[i] = static_cast<float>(row[targets[i]] - kernels::LogSumExp(row, vocabulary));
    }
  });
}

}  // namespace isotherm::gpu_worker
