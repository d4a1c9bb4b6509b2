#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {

void HostDevice::MatMul(const kernels::WeightMatrix& weight, const float* bias, const float* x, int64_t rows,
                        float* y) {
  if (!failure_.ok()) return;
  kernels::MatMul(pool_, weight, x, weight.columns, rows, y, weight.rows);
  for (int64_t r = 0; bias != nullptr && r < rows; ++r) kernels::Add(bias, y + r * weight.rows, weight.rows);
}

}  // namespace isotherm::gpu_worker
