#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/kernels/row_ops.h"

namespace isotherm::gpu_worker {

void CudaDevice::Normalize(const Norm& norm, const float* x, int64_t rows, int64_t n, float* out) {
  Enqueue("norm", [&] {
    return norm.kind == model::NormKind::kLayer
               ? cuda::LayerNorm(x, norm.weight, norm.bias, norm.epsilon, rows, n, out, stream())
               : cuda::RmsNorm(x, norm.weight, norm.epsilon, rows, n, out, stream());
  });
}

}  // namespace isotherm::gpu_worker
