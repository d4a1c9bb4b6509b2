#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {

void HostDevice::Normalize(const Norm& norm, const float* x, int64_t rows, int64_t n, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    switch (norm.kind) {
      case model::NormKind::kRms:
        kernels::RmsNorm(x + r * n, norm.weight, norm.epsilon, n, out + r * n);
        break;
      case model::NormKind::kLayer:
        kernels::LayerNorm(x + r * n, norm.weight, norm.bias, norm.epsilon, n, out + r * n);
        break;
    }
  }
}

}  // namespace isotherm::gpu_worker
