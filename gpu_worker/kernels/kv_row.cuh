#ifndef ISOTHERM_GPU_WORKER_KERNELS_KV_ROW_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_KV_ROW_CUH_

#include <cuda_fp16.h>

#include "common/kernels/ops.h"
#include "gpu_worker/kernels/decode.cuh"
#include "gpu_worker/kernels/reduce.cuh"

// One head's row of the KV cache (kernels::PagedKv), two columns at a time; head sizes are even.
namespace isotherm::gpu_worker::cuda {

using kernels::KvType;

inline constexpr int kKvBlockColumns = 32;

template <KvType kType>
__host__ __device__ inline int64_t KvRowBytes(int64_t head_dim) {
  if (kType == KvType::kF16) return 2 * head_dim;
  if (kType == KvType::kQ8_0) return head_dim + head_dim / kKvBlockColumns * 2;
  return 4 * head_dim;
}

// Byte offset of the row of token `position` for one head.
template <KvType kType>
__device__ inline int64_t KvRowOffset(const kernels::PagedKv& kv, const uint32_t* block_table, int position,
                                      int64_t kv_head) {
  const int block_size = static_cast<int>(kv.block_size);
  return block_table[position / block_size] * kv.block_bytes +
         (kv_head * block_size + position % block_size) * KvRowBytes<kType>(kv.head_dim);
}

// Columns `column` (even) and the next.
template <KvType kType>
__device__ inline float2 LoadKvPair(const uint8_t* row, int64_t head_dim, int64_t column) {
  if constexpr (kType == KvType::kF16) {
    return __half22float2(*reinterpret_cast<const __half2*>(row + 2 * column));
  } else if constexpr (kType == KvType::kQ8_0) {
    const char2 quants = *reinterpret_cast<const char2*>(row + column);
    const float scale =
        HalfBits(*reinterpret_cast<const unsigned short*>(row + head_dim + column / kKvBlockColumns * 2));
    return {static_cast<float>(static_cast<signed char>(quants.x)) * scale,
            static_cast<float>(static_cast<signed char>(quants.y)) * scale};
  } else {
    return *reinterpret_cast<const float2*>(row + 4 * column);
  }
}

// Stores a row by all threads of the block, whole warps. Q8_0 rounds as common/kernels/pack_kernels.h does.
template <KvType kType>
__device__ inline void StoreKvRow(const float* values, int64_t head_dim, uint8_t* row) {
  for (int64_t i = threadIdx.x; i < head_dim; i += blockDim.x) {
    if constexpr (kType == KvType::kF16) {
      reinterpret_cast<__half*>(row)[i] = __float2half_rn(values[i]);
    } else if constexpr (kType == KvType::kF32) {
      reinterpret_cast<float*>(row)[i] = values[i];
    } else {
      // A warp has a block of 32 columns.
      const float scale = WarpMax(fabsf(values[i])) / 127;
      row[i] = static_cast<uint8_t>(static_cast<int8_t>(roundf(values[i] * (scale != 0 ? 1 / scale : 0.0f))));
      if (i % kKvBlockColumns == 0) {
        *reinterpret_cast<__half*>(row + head_dim + i / kKvBlockColumns * 2) = __float2half_rn(scale);
      }
    }
  }
}

// Calls function.template operator()<kType>() for the type.
template <typename Function>
inline auto DispatchKvType(KvType type, const Function& function) {
  switch (type) {
    case KvType::kF16:
      return function.template operator()<KvType::kF16>();
    case KvType::kQ8_0:
      return function.template operator()<KvType::kQ8_0>();
    case KvType::kF32:
      break;
  }
  return function.template operator()<KvType::kF32>();
}

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_KV_ROW_CUH_
