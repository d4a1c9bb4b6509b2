#include <cstring>

#include "common/kernels/ops.h"
#include "common/kernels/pack_kernels.h"

namespace isotherm::kernels {
namespace {

constexpr int64_t kBlockColumns = 32;

void WriteRow(KvType type, const float* values, int64_t head_dim, uint8_t* row) {
  const PackKernels& kernels = GetPackKernels();
  switch (type) {
    case KvType::kF16:
      kernels.round_f16(values, head_dim, reinterpret_cast<uint16_t*>(row));
      break;
    case KvType::kQ8_0:
      kernels.quantize_q8_0(values, head_dim, reinterpret_cast<int8_t*>(row),
                            reinterpret_cast<uint16_t*>(row + head_dim));
      break;
    case KvType::kF32:
      std::memcpy(row, values, static_cast<size_t>(head_dim) * sizeof(float));
      break;
  }
}

}  // namespace

int64_t KvRowBytes(KvType type, int64_t head_dim) {
  switch (type) {
    case KvType::kF16:
      return 2 * head_dim;
    case KvType::kQ8_0:
      return head_dim + head_dim / kBlockColumns * 2;
    case KvType::kF32:
      break;
  }
  return 4 * head_dim;
}

void WriteKv(const PagedKv& kv, const uint32_t* block_table, int64_t position, const float* k,
             const float* v) {
  const int64_t row_bytes = KvRowBytes(kv.type, kv.head_dim);
  const int64_t block = block_table[position / kv.block_size] * kv.block_bytes;
  for (int64_t head = 0; head < kv.kv_heads; ++head) {
    const int64_t offset = block + (head * kv.block_size + position % kv.block_size) * row_bytes;
    WriteRow(kv.type, k + head * kv.head_dim, kv.head_dim, kv.k + offset);
    WriteRow(kv.type, v + head * kv.head_dim, kv.head_dim, kv.v + offset);
  }
}

}  // namespace isotherm::kernels
