#include "gpu_worker/kernels/rope_and_write_kv.h"

#include "gpu_worker/cuda/cuda_device.h"

namespace isotherm::gpu_worker {

void CudaDevice::RopeAndWriteKv(const kernels::RopeTable& rope, const kernels::PagedKv& kv, int64_t heads,
                                float* q, float* k, const float* v) {
  Enqueue("RoPE",
          [&] { return cuda::RopeAndWriteKv(tables_.sequences(), kv, rope, heads, q, k, v, stream()); });
}

}  // namespace isotherm::gpu_worker
