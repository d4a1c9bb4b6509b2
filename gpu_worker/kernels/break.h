#ifndef ISOTHERM_GPU_WORKER_KERNELS_BREAK_H_
#define ISOTHERM_GPU_WORKER_KERNELS_BREAK_H_

#include <cuda_runtime.h>

namespace isotherm::gpu_worker::cuda {

// Ends the context with cudaErrorIllegalAddress once the stream gets there.
cudaError_t WriteNowhere(cudaStream_t stream);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_BREAK_H_
