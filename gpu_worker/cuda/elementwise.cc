#include "gpu_worker/kernels/elementwise.h"

#include "gpu_worker/cuda/cuda_device.h"

namespace isotherm::gpu_worker {

void CudaDevice::Add(const float* x, const float* bias, float scale, int64_t rows, int64_t n, float* y) {
  Enqueue("add", [&] { return cuda::Add(x, bias, scale, rows, n, y, stream()); });
}

void CudaDevice::Relu(float* x, int64_t count) {
  Enqueue("relu", [&] { return cuda::Relu(x, count, stream()); });
}

void CudaDevice::GatherOutputRows(const float* x, int64_t n, float* out) {
  Enqueue("gather rows", [&] {
    return cuda::GatherRows(x, tables_.output_rows(), tables_.output_count(), n, out, stream());
  });
}

}  // namespace isotherm::gpu_worker
