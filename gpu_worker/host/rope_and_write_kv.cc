#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {

void HostDevice::RopeAndWriteKv(const kernels::RopeTable& rope, const kernels::PagedKv& kv, int64_t heads,
                                float* q, float* k, const float* v) {
  if (!failure_.ok()) return;
  const int64_t query = heads * kv.head_dim;
  const int64_t key = kv.kv_heads * kv.head_dim;
  pool_.ParallelFor(rows_.count(), 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const auto position = static_cast<float>(Position(r));
      kernels::Rope(rope, position, heads, kv.head_dim, q + r * query);
      kernels::Rope(rope, position, kv.kv_heads, kv.head_dim, k + r * key);
      kernels::WriteKv(kv, BlockTable(r), Position(r), k + r * key, v + r * key);
    }
  });
}

}  // namespace isotherm::gpu_worker
