#ifndef ISOTHERM_GPU_WORKER_KERNELS_ROPE_AND_WRITE_KV_H_
#define ISOTHERM_GPU_WORKER_KERNELS_ROPE_AND_WRITE_KV_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "common/kernels/ops.h"
#include "gpu_worker/kernels/sequence_rows.h"

namespace isotherm::gpu_worker::cuda {

// Rotates the pairs of q [rows, heads, head_dim] in place, and stores k [rows, kv_heads, head_dim], rotated,
// and v at the rows' positions of the cache.
cudaError_t RopeAndWriteKv(const SequenceRows& sequences, const kernels::PagedKv& kv,
                           const kernels::RopeTable& rope, int64_t heads, float* q, const float* k,
                           const float* v, cudaStream_t stream);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_ROPE_AND_WRITE_KV_H_
