#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {

void HostDevice::RmsNorm(const float* x, const float* weight, float epsilon, int64_t rows, int64_t n,
                         float* out) {
  for (int64_t r = 0; r < rows; ++r) kernels::RmsNorm(x + r * n, weight, epsilon, n, out + r * n);
}

}  // namespace isotherm::gpu_worker
