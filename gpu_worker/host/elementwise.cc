#include <algorithm>

#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {

void HostDevice::Add(const float* x, const float* bias, float scale, int64_t rows, int64_t n, float* y) {
  for (int64_t r = 0; r < rows; ++r) kernels::AddScaled(x + r * n, bias, scale, y + r * n, n);
}

void HostDevice::Relu(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = std::max(x[i], 0.0f);
}

void HostDevice::GatherOutputRows(const float* x, int64_t n, float* out) {
  for (int32_t row : pass_.output_rows) out = std::copy_n(x + row * n, n, out);
}

}  // namespace isotherm::gpu_worker
