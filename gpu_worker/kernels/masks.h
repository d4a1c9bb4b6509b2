#ifndef ISOTHERM_GPU_WORKER_KERNELS_MASKS_H_
#define ISOTHERM_GPU_WORKER_KERNELS_MASKS_H_

#include <cuda_runtime.h>

#include <cstdint>

// Activation masks (common/neuron/mask.h) and the sketch predictor's scores (common/kernels/sketch_layout.h).
namespace isotherm::gpu_worker::cuda {

// Every neuron of every row.
cudaError_t MaskAll(int64_t rows, int64_t ffn, uint64_t* masks, cudaStream_t stream);

// Bit j of row r: scores[r, j] + bias[j] >= threshold (`strict`: >). bias may be null.
cudaError_t MaskFromScores(const float* scores, const float* bias, float threshold, bool strict, int64_t rows,
                           int64_t ffn, uint64_t* masks, cudaStream_t stream);

// Quantises x [rows, columns] to rows of kernels::SketchInputBytes.
cudaError_t SketchInput(const float* x, int64_t rows, int64_t columns, uint8_t* inputs, cudaStream_t stream);

// scores[r, j] ~ sketched row j . input r; bit-equal to kernels::SketchScores. sketch_bytes:
// SketchRowBytes(columns).
cudaError_t SketchScores(const uint8_t* sketches, int64_t sketch_bytes, int64_t neurons,
                         const uint8_t* inputs, int64_t rows, int64_t columns, float* scores,
                         cudaStream_t stream);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_MASKS_H_
