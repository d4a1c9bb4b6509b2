#include <algorithm>

#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {

void HostDevice::Add(const float* x, int64_t count, float* y) { kernels::Add(x, y, count); }

void HostDevice::Relu(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = std::max(x[i], 0.0f);
}

void HostDevice::GatherOutputRows(const float* x, int64_t n, float* out) {
  for (int32_t row : pass_.output_rows) out = std::copy_n(x + row * n, n, out);
}

}  // namespace isotherm::gpu_worker
