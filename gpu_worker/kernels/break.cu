#include "gpu_worker/kernels/break.h"

namespace isotherm::gpu_worker::cuda {
namespace {

__global__ void WriteTo(volatile int* address) { *address = 1; }

}  // namespace

cudaError_t WriteNowhere(cudaStream_t stream) {
  WriteTo<<<1, 1, 0, stream>>>(nullptr);
  return cudaGetLastError();
}

}  // namespace isotherm::gpu_worker::cuda
