#include <algorithm>

#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {

void HostDevice::Attention(const kernels::PagedKv& kv, const float* q, int64_t heads, float scale,
                           float* out) {
  if (!failure_.ok()) return;
  const int64_t width = heads * kv.head_dim;
  const int64_t group = heads / kv.kv_heads;
  const int64_t longest = 1 + *std::max_element(pass_.positions.begin(), pass_.positions.end());
  const auto scratch = static_cast<size_t>(longest * group + 2 * kv.head_dim + 64);
  for (std::vector<float>& mine : attention_scratch_) {
    if (mine.size() < scratch) mine.resize(scratch);
  }
  // A task is one row's query heads over one KV head, so that a single long sequence uses every thread.
  pool_.ParallelFor(rows_.count() * kv.kv_heads, 1, [&](int64_t begin, int64_t end, int member) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / kv.kv_heads;
      const int64_t kv_head = task % kv.kv_heads;
      kernels::Attend(kv, BlockTable(row), Position(row) + 1, q + row * width, heads, kv_head * group,
                      (kv_head + 1) * group, scale, attention_scratch_[member].data(), out + row * width);
    }
  });
}

}  // namespace isotherm::gpu_worker
