#ifndef ISOTHERM_GPU_WORKER_DEVICE_MATRIX_H_
#define ISOTHERM_GPU_WORKER_DEVICE_MATRIX_H_

#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "common/model/model.h"
#include "gpu_worker/device/device.h"

namespace isotherm::gpu_worker {

// A matrix of the file in device memory, packed row by row.
struct DeviceMatrix {
  Buffer buffer;
  kernels::WeightMatrix view;
};

// The head's matrix is that of the token embedding.
bool TiesEmbedding(const model::Model& model);

// 0 for an absent tensor.
int64_t DeviceMatrixBytes(const model::TensorRef& tensor);

// Reads the matrix once, asks for all of it in advance and releases the file's pages.
absl::StatusOr<DeviceMatrix> LoadMatrix(const model::Model& model, const model::TensorRef& tensor,
                                        MemoryPurpose purpose, Device& device);
// A vector as F32, each value multiplied by `scale`.
absl::StatusOr<Buffer> LoadVector(const model::Model& model, const model::TensorRef& tensor,
                                  MemoryPurpose purpose, Device& device, float scale = 1);
int64_t DeviceVectorBytes(const model::TensorRef& tensor);

// Weight and bias of a matrix; the bias is an empty buffer where there is none.
struct DeviceProjection {
  DeviceMatrix weight;
  Buffer bias;
};
absl::StatusOr<DeviceProjection> LoadProjection(const model::Model& model, const model::Affine& projection,
                                                MemoryPurpose purpose, Device& device);
int64_t DeviceProjectionBytes(const model::Affine& projection);

// Weight and bias of a norm, both multiplied by `scale`.
struct DeviceNorm {
  Buffer weight, bias;
  Norm view;
};
absl::StatusOr<DeviceNorm> LoadNorm(const model::Model& model, const model::Affine& norm,
                                    MemoryPurpose purpose, Device& device, float scale = 1);
int64_t DeviceNormBytes(const model::Affine& norm);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_DEVICE_MATRIX_H_
