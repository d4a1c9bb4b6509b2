#include "common/kernels/row_kernels.h"
#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {

void HostDevice::Embed(const kernels::WeightMatrix& embedding, float* x) {
  const kernels::RowKernels& rows = kernels::GetRowKernels(embedding.type);
  for (int64_t r = 0; r < pass_.rows(); ++r) {
    rows.unpack(embedding.data + pass_.tokens[r] * embedding.stride_bytes, embedding.columns,
                x + r * embedding.columns);
  }
}

}  // namespace isotherm::gpu_worker
