#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/kernels/mat_mul.h"

namespace isotherm::gpu_worker {

void CudaDevice::Embed(const Embedding& embedding, float* x) {
  Enqueue("embed", [&] {
    return cuda::Embed(embedding.tokens,
                       {.indices = tables_.tokens(), .count = rows_, .scale = embedding.scale}, x, stream());
  });
  if (embedding.positions.data == nullptr) return;
  Enqueue("embed positions", [&] {
    return cuda::Embed(embedding.positions,
                       {.indices = tables_.sequences().positions,
                        .offset = embedding.position_offset,
                        .count = rows_,
                        .accumulate = true},
                       x, stream());
  });
}

}  // namespace isotherm::gpu_worker
