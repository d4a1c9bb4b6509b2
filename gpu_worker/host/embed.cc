#include "common/kernels/row_kernels.h"
#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {
namespace {

void UnpackMatrixRow(const kernels::WeightMatrix& matrix, int64_t row, float* out) {
  kernels::GetRowKernels(matrix.type).unpack(matrix.data + row * matrix.stride_bytes, matrix.columns, out);
}

}  // namespace

void HostDevice::Embed(const Embedding& embedding, float* x) {
  const int64_t hidden = embedding.tokens.columns;
  for (int64_t r = 0; r < pass_.rows(); ++r) {
    float* row = x + r * hidden;
    UnpackMatrixRow(embedding.tokens, pass_.tokens[r], row);
    if (embedding.scale != 1) {
      for (int64_t i = 0; i < hidden; ++i) row[i] *= embedding.scale;
    }
    if (embedding.positions.data == nullptr) continue;
    UnpackMatrixRow(embedding.positions, pass_.positions[r] + embedding.position_offset, position_.data());
    kernels::Add(position_.data(), row, hidden);
  }
}

}  // namespace isotherm::gpu_worker
