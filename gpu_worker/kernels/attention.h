#ifndef ISOTHERM_GPU_WORKER_KERNELS_ATTENTION_H_
#define ISOTHERM_GPU_WORKER_KERNELS_ATTENTION_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "common/kernels/ops.h"
#include "gpu_worker/kernels/sequence_rows.h"

namespace isotherm::gpu_worker::cuda {

inline constexpr int64_t kMostHeadDim = 256;
// Tokens whose scores a block holds at once; also the unit in which a long context is split over blocks.
inline constexpr int64_t kSplitTokens = 64;

// F32 values of `partials` for so many splits.
int64_t AttentionPartialFloats(int64_t rows, int64_t heads, int64_t head_dim, int64_t splits);

// Causal attention of every row over its sequence's cache, q and out [rows, heads, head_dim]. `splits` blocks
// share a row's context: 1, or at least as many as the longest context has pieces of kSplitTokens. The result
// is the same bit for bit either way. head_dim is even and at most kMostHeadDim.
cudaError_t Attention(const SequenceRows& sequences, const kernels::PagedKv& kv, const float* q,
                      int64_t heads, float scale, int64_t splits, float* partials, float* out,
                      cudaStream_t stream);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_ATTENTION_H_
