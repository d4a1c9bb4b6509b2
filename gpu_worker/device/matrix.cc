#include "gpu_worker/device/matrix.h"

#include <cstring>

#include "common/base/status_macros.h"
#include "common/neuron/bundle.h"

namespace isotherm::gpu_worker {
namespace {

// Rows handed to a loader thread at a time; small enough to balance, large enough that the ticket does not
// matter.
constexpr int64_t kRowsPerTask = 64;
// Matrices are written in pieces of this size so that a device with a staging buffer needs a bounded one.
constexpr int64_t kPieceBytes = int64_t{64} << 20;

}  // namespace

bool TiesEmbedding(const model::Model& model) { return model.output().info == model.token_embedding().info; }

int64_t DeviceMatrixBytes(const model::TensorRef& tensor) {
  if (!tensor.present()) return 0;
  auto type = neuron::PackedWeightType(*tensor.info);
  return type.ok() ? tensor.rows * kernels::PackedRowBytes(*type, tensor.columns) : 0;
}

absl::StatusOr<DeviceMatrix> LoadMatrix(const model::Model& model, const model::TensorRef& tensor,
                                        MemoryPurpose purpose, Device& device) {
  ISOTHERM_ASSIGN_OR_RETURN(const kernels::WeightType type, neuron::PackedWeightType(*tensor.info));
  DeviceMatrix matrix;
  const int64_t stride = kernels::PackedRowBytes(type, tensor.columns);
  const int64_t file_row = kernels::FileRowBytes(type, tensor.columns);
  ISOTHERM_ASSIGN_OR_RETURN(matrix.buffer, device.Allocate(tensor.rows * stride, purpose));
  matrix.view = {matrix.buffer.data(), type, tensor.rows, tensor.columns, stride};

  model.file().PrefetchPages(*tensor.info);
  const uint8_t* source = model.file().Data(*tensor.info).data() + tensor.first_row * file_row;
  const int64_t rows_per_piece = std::max<int64_t>(1, kPieceBytes / stride);
  for (int64_t first = 0; first < tensor.rows; first += rows_per_piece) {
    const int64_t rows = std::min(rows_per_piece, tensor.rows - first);
    auto pack = [&](uint8_t* out) {
      device.loader_pool().ParallelFor(rows, kRowsPerTask, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
          kernels::PackRow(type, source + (first + row) * file_row, tensor.columns, out + row * stride);
        }
      });
    };
    ISOTHERM_RETURN_IF_ERROR(device.Write(matrix.buffer, first * stride, rows * stride, pack));
  }
  model.file().ReleasePages(*tensor.info);
  return matrix;
}

absl::StatusOr<Buffer> LoadVector(const model::Model& model, const model::TensorRef& tensor,
                                  MemoryPurpose purpose, Device& device, float scale) {
  ISOTHERM_ASSIGN_OR_RETURN(const kernels::WeightType type, neuron::PackedWeightType(*tensor.info));
  const int64_t bytes = DeviceVectorBytes(tensor);
  ISOTHERM_ASSIGN_OR_RETURN(Buffer buffer, device.Allocate(bytes, purpose));
  ISOTHERM_RETURN_IF_ERROR(device.Write(buffer, 0, bytes, [&](uint8_t* out) {
    auto* values = reinterpret_cast<float*>(out);
    kernels::UnpackFileRow(type, model.file().Data(*tensor.info).data(), tensor.columns, values);
    for (int64_t i = 0; i < tensor.columns; ++i) values[i] *= scale;
  }));
  return buffer;
}

int64_t DeviceVectorBytes(const model::TensorRef& tensor) {
  return tensor.columns * static_cast<int64_t>(sizeof(float));
}

absl::StatusOr<DeviceProjection> LoadProjection(const model::Model& model, const model::Affine& projection,
                                                MemoryPurpose purpose, Device& device) {
  DeviceProjection loaded;
  ISOTHERM_ASSIGN_OR_RETURN(loaded.weight, LoadMatrix(model, projection.weight, purpose, device));
  if (projection.bias.present()) {
    ISOTHERM_ASSIGN_OR_RETURN(loaded.bias, LoadVector(model, projection.bias, purpose, device));
  }
  return loaded;
}

int64_t DeviceProjectionBytes(const model::Affine& projection) {
  return DeviceMatrixBytes(projection.weight) + DeviceVectorBytes(projection.bias);
}

absl::StatusOr<DeviceNorm> LoadNorm(const model::Model& model, const model::Affine& norm,
                                    MemoryPurpose purpose, Device& device, float scale) {
  DeviceNorm loaded;
  ISOTHERM_ASSIGN_OR_RETURN(loaded.weight, LoadVector(model, norm.weight, purpose, device, scale));
  if (norm.bias.present()) {
    ISOTHERM_ASSIGN_OR_RETURN(loaded.bias, LoadVector(model, norm.bias, purpose, device, scale));
  }
  const model::Hyperparameters& h = model.hyperparameters();
  loaded.view = {h.norm, h.norm_epsilon, loaded.weight.as<float>(), loaded.bias.as<float>()};
  return loaded;
}

int64_t DeviceNormBytes(const model::Affine& norm) {
  return DeviceVectorBytes(norm.weight) + DeviceVectorBytes(norm.bias);
}

}  // namespace isotherm::gpu_worker
