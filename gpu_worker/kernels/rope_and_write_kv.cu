#include "gpu_worker/kernels/chain.cuh"
#include "gpu_worker/kernels/kv_row.cuh"
#include "gpu_worker/kernels/rope_and_write_kv.h"

namespace isotherm::gpu_worker::cuda {
namespace {

constexpr int kThreads = 128;

// The angle is a product of up to 2^24 positions; F64 keeps it exact.
__device__ void Rotate(float* head, const kernels::RopeTable& rope, int64_t pair, int position) {
  double sine, cosine;
  sincos(static_cast<double>(position) * rope.inverse_frequency[pair], &sine, &cosine);
  const auto s = static_cast<float>(sine), c = static_cast<float>(cosine);
  float* const first = head + pair * rope.step;
  const float a = first[0], b = first[rope.gap];
  first[0] = a * c - b * s;
  first[rope.gap] = a * s + b * c;
}

// One block has one head of one token row: blockIdx.y counts the query heads, the key heads, the value heads.
template <KvType kType>
__global__ void __launch_bounds__(kThreads)
    RopeAndWriteKvKernel(SequenceRows sequences, kernels::PagedKv kv, kernels::RopeTable rope, int64_t heads,
                         float* q, const float* k, const float* v) {
  extern __shared__ float head[];
  JoinChain();
  const int64_t row = blockIdx.x;
  const int64_t index = blockIdx.y;
  const bool is_query = index < heads;
  const bool is_value = index >= heads + kv.kv_heads;
  const int64_t kv_head = is_value ? index - heads - kv.kv_heads : index - heads;
  const float* source = is_query ? q + (row * heads + index) * kv.head_dim
                                 : (is_value ? v : k) + (row * kv.kv_heads + kv_head) * kv.head_dim;
  for (int64_t i = threadIdx.x; i < kv.head_dim; i += kThreads) head[i] = source[i];
  __syncthreads();
  const int position = sequences.positions[row];
  for (int64_t pair = threadIdx.x; !is_value && pair < rope.pairs; pair += kThreads) {
    Rotate(head, rope, pair, position);
  }
  __syncthreads();
  if (is_query) {
    float* out = q + (row * heads + index) * kv.head_dim;
    for (int64_t i = threadIdx.x; i < kv.head_dim; i += kThreads) out[i] = head[i];
    return;
  }
  const uint32_t* table = sequences.block_tables + sequences.table_offsets[row];
  uint8_t* cache = is_value ? kv.v : kv.k;
  StoreKvRow<kType>(head, kv.head_dim, cache + KvRowOffset<kType>(kv, table, position, kv_head));
}

}  // namespace

cudaError_t RopeAndWriteKv(const SequenceRows& sequences, const kernels::PagedKv& kv,
                           const kernels::RopeTable& rope, int64_t heads, float* q, const float* k,
                           const float* v, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(sequences.rows), static_cast<unsigned>(heads + 2 * kv.kv_heads));
  const int64_t shared = kv.head_dim * static_cast<int64_t>(sizeof(float));
  return DispatchKvType(kv.type, [&]<KvType kType>() {
    return LaunchChained(RopeAndWriteKvKernel<kType>, grid, kThreads, shared, stream, sequences, kv, rope,
                         heads, q, k, v);
  });
}

}  // namespace isotherm::gpu_worker::cuda
