#ifndef ISOTHERM_GPU_WORKER_KERNELS_MERGE_AND_NORMALIZE_H_
#define ISOTHERM_GPU_WORKER_KERNELS_MERGE_AND_NORMALIZE_H_

#include "gpu_worker/kernels/exchange.h"
#include "gpu_worker/kernels/row_ops.h"

namespace isotherm::gpu_worker::cuda {

// MergeCold into hot.x and AddAndNormalize of the result, in one kernel: what follows an answer is on the way
// to the next request. The norm does not subtract the mean; hot.x stays as it is.
cudaError_t MergeAndNormalize(const ExchangeRegion& region, const ExchangeCall& call, ExchangeState* state,
                              ExchangeRecord* record, const RowAddend& hot, const RowNorm& norm, float* y,
                              float* out, cudaStream_t stream);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_MERGE_AND_NORMALIZE_H_
