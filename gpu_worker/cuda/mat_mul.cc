#include "gpu_worker/kernels/mat_mul.h"

#include <algorithm>

#include "common/base/status_macros.h"
#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/cuda/limits.h"
#include "gpu_worker/kernels/elementwise.h"

namespace isotherm::gpu_worker {

void CudaDevice::MatMul(const kernels::WeightMatrix& weight, const float* bias, const float* x, int64_t rows,
                        float* y) {
  if (rows <= cuda::kSparseRows && weight.columns <= cuda::kMostStagedColumns) {
    return Enqueue("matrix product", [&] { return cuda::MatMul(weight, bias, x, rows, y, stream()); });
  }
  if (mode_ == Mode::kReplay || !failure_.ok()) return;
  Latch(DenseProduct(weight, x, rows, y));
  if (bias != nullptr) Enqueue("bias", [&] { return cuda::AddBias(bias, rows, weight.rows, y, stream()); });
}

absl::Status CudaDevice::DenseProduct(const kernels::WeightMatrix& weight, const float* x, int64_t rows,
                                      float* y) {
  auto* const tile = static_cast<float*>(arena_.get());
  const int64_t tile_rows = std::max<int64_t>(1, cuda::kArenaFloats / weight.columns);
  for (int64_t first = 0; first < weight.rows; first += tile_rows) {
    const int64_t count = std::min(tile_rows, weight.rows - first);
    ISOTHERM_RETURN_IF_ERROR(
        cuda::ToStatus(cuda::Unpack(weight, first, count, tile, stream()), "unpacking weights"));
    ISOTHERM_RETURN_IF_ERROR(
        cublas_->ProductNT(rows, count, weight.columns, x, tile, y + first, weight.rows));
  }
  return absl::OkStatus();
}

}  // namespace isotherm::gpu_worker
