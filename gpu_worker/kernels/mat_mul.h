#ifndef ISOTHERM_GPU_WORKER_KERNELS_MAT_MUL_H_
#define ISOTHERM_GPU_WORKER_KERNELS_MAT_MUL_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "common/kernels/ops.h"

namespace isotherm::gpu_worker::cuda {

// Most columns of a matrix whose token rows MatMul stages in shared memory.
inline constexpr int64_t kMostStagedColumns = 24 << 10;

// y[b, r] = weight[r, :] . x[b, :] + bias[r] (null for none).
struct Product {
  kernels::WeightMatrix weight;
  const float* bias = nullptr;
  float* y = nullptr;
};
inline constexpr int kMostProducts = 3;

// Products of x [rows, columns] with up to kMostProducts matrices of one type and width in one launch,
// reading the weights once for every eight rows (fewer where they are long). A row's result does not depend
// on the others. Columns are at most kMostStagedColumns. No kernel of the stream may write the weights: they
// are read while kernels before this one still run.
cudaError_t MatMul(const Product* products, int count, const float* x, int64_t rows, cudaStream_t stream);

// out[i, :] = row first + i of the matrix as F32, i < count.
cudaError_t Unpack(const kernels::WeightMatrix& weight, int64_t first, int64_t count, float* out,
                   cudaStream_t stream);

// out[i, :] (+)= scale * row (indices[i] + offset) of the matrix as F32, i < count.
struct EmbedRows {
  const int32_t* indices = nullptr;
  int64_t offset = 0;
  int64_t count = 0;
  float scale = 1;
  bool accumulate = false;
};
cudaError_t Embed(const kernels::WeightMatrix& weight, const EmbedRows& rows, float* out,
                  cudaStream_t stream);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_MAT_MUL_H_
