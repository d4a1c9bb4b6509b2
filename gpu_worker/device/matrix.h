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

absl::StatusOr<kernels::WeightType> ToWeightType(gguf::TensorType type);
int64_t DeviceMatrixBytes(const model::TensorRef& tensor);

// Reads the tensor once and releases the file's pages.
absl::StatusOr<DeviceMatrix> LoadMatrix(const model::Model& model, const model::TensorRef& tensor,
                                        MemoryPurpose purpose, Device& device);
// A vector as F32.
absl::StatusOr<Buffer> LoadVector(const model::Model& model, const model::TensorRef& tensor,
                                  MemoryPurpose purpose, Device& device);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_DEVICE_MATRIX_H_
