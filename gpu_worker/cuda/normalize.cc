#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/cuda/limits.h"
#include "gpu_worker/kernels/row_ops.h"

namespace isotherm::gpu_worker {
namespace {

cuda::RowNorm ToRowNorm(const Norm& norm) {
  return {norm.kind == model::NormKind::kLayer, norm.weight, norm.bias, norm.epsilon};
}

}  // namespace

void CudaDevice::Normalize(const Norm& norm, const float* x, int64_t rows, int64_t n, float* out) {
  Enqueue("norm", [&] { return cuda::Normalize(ToRowNorm(norm), x, rows, n, out, stream()); });
}

void CudaDevice::AddAndNormalize(const Term& term, const Norm& norm, int64_t rows, int64_t n, float* y,
                                 float* out) {
  Enqueue("add and norm", [&] {
    return cuda::AddAndNormalize({term.x, term.bias, term.scale}, ToRowNorm(norm), rows, n, y, out, stream());
  });
}

void CudaDevice::MergeAndNormalize(const FfnCall& call, const HotLayer& hot, const FfnTerm& term,
                                   const Norm& norm, int64_t n, float* y, float* out) {
  const bool together = direct_ != nullptr && !streaming_ && hot.count < ffn_.ffn &&
                        call.rows <= cuda::kSparseRows && norm.kind == model::NormKind::kRms;
  if (!together) return Device::MergeAndNormalize(call, hot, term, norm, n, y, out);
  Enqueue("merging cold neurons, add and norm", [&] {
    return direct_->MergeAndNormalize(MakeExchange(call, hot), {term.part, term.bias, term.scale},
                                      ToRowNorm(norm), y, out, stream());
  });
}

}  // namespace isotherm::gpu_worker
