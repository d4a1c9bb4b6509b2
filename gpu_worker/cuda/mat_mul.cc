#include "gpu_worker/kernels/mat_mul.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "gpu_worker/cuda/arena.h"
#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/cuda/limits.h"
#include "gpu_worker/kernels/elementwise.h"

namespace isotherm::gpu_worker {

void CudaDevice::MatMul(const kernels::WeightMatrix& weight, const float* bias, const float* x, int64_t rows,
                        float* y) {
  if (rows <= cuda::kSparseRows && weight.columns <= cuda::kMostStagedColumns) {
    const cuda::Product product{weight, bias, y};
    return Enqueue(
        "matrix product", [&] { return absl::StrCat(" ", weight.rows, " x ", weight.columns); },
        [&] { return cuda::MatMul(&product, 1, x, rows, stream()); });
  }
  if (mode_ == Mode::kReplay || !failure_.ok()) return;
  Latch(DenseProduct(weight, x, rows, y));
  if (bias != nullptr) Enqueue("bias", [&] { return cuda::AddBias(bias, rows, weight.rows, y, stream()); });
}

void CudaDevice::MatMuls(absl::Span<const Product> products, const float* x, int64_t rows) {
  std::array<cuda::Product, cuda::kMostProducts> together;
  bool fit = products.size() <= together.size() && rows <= cuda::kSparseRows;
  for (size_t i = 0; fit && i < products.size(); ++i) {
    const auto& [weight, bias, y] = products[i];
    fit = weight.type == products[0].weight.type && weight.columns == products[0].weight.columns &&
          weight.columns <= cuda::kMostStagedColumns;
    together[i] = {weight, bias, y};
  }
  if (!fit) return Device::MatMuls(products, x, rows);
  Enqueue("matrix products", [&] {
    return cuda::MatMul(together.data(), static_cast<int>(products.size()), x, rows, stream());
  });
}

absl::Status CudaDevice::DenseProduct(const kernels::WeightMatrix& weight, const float* x, int64_t rows,
                                      float* y) {
  const int64_t most = cuda::RowsAtOnce(rows, weight.columns);
  for (int64_t first = 0; first < rows; first += most) {
    ISOTHERM_RETURN_IF_ERROR(DenseProductOfRows(weight, x + first * weight.columns,
                                                std::min(most, rows - first), y + first * weight.rows));
  }
  return absl::OkStatus();
}

absl::Status CudaDevice::DenseProductOfRows(const kernels::WeightMatrix& weight, const float* x, int64_t rows,
                                            float* y) {
  const bool exact = cuda::IsExactInTf32(weight.type);
  cuda::Arena arena(arena_.get());
  const cuda::SplitMatrix inputs = arena.TakeSplit(rows, weight.columns, /*exact=*/false);
  ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(cuda::SplitRows(x, rows, weight.columns, inputs, stream()),
                                          "splitting the input of a product"));
  const int64_t left = cuda::kArenaFloats - 2 * rows * weight.columns;
  const int64_t tile_rows = std::clamp<int64_t>(left / (weight.columns * (exact ? 1 : 2)), 1, weight.rows);
  const cuda::SplitMatrix tile = arena.TakeSplit(tile_rows, weight.columns, exact);
  for (int64_t first = 0; first < weight.rows; first += tile_rows) {
    const int64_t count = std::min(tile_rows, weight.rows - first);
    ISOTHERM_RETURN_IF_ERROR(
        cuda::ToStatus(cuda::UnpackSplit(weight, first, count, count, tile, stream()), "unpacking weights"));
    ISOTHERM_RETURN_IF_ERROR(cublas_->ProductNT(rows, count, weight.columns, inputs, tile,
                                                /*accumulate=*/false, y + first, weight.rows));
  }
  return absl::OkStatus();
}

}  // namespace isotherm::gpu_worker
