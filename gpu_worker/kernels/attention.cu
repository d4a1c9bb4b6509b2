#include "gpu_worker/kernels/attention.h"
#include "gpu_worker/kernels/chain.cuh"
#include "gpu_worker/kernels/kv_row.cuh"

namespace isotherm::gpu_worker::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMostPairs = kMostHeadDim / (2 * kWarp);  // a lane's pairs of columns
// Tokens of a warp whose keys, or values, are on their way at once: what registers leave room for.
template <int kGroup>
inline constexpr int kTokensAhead = kGroup < 8 ? 8 : 4;

// Softmax over part of a context: the largest score, the sum of exp(score - max); the weighted values lie
// apart.
struct Softmax {
  float max;
  float sum;
};

// Appends a later part. Factors for the values of both: values = values * keep + later values * take.
__device__ Softmax Merge(const Softmax& before, const Softmax& later, float& keep, float& take) {
  const float max = MaxKeepingNaN(before.max, later.max);
  keep = expf(before.max - max);
  take = expf(later.max - max);
  return {max, fmaf(before.sum, keep, later.sum * take)};
}
__device__ float MergeValue(float before, float keep, float later, float take) {
  return fmaf(before, keep, later * take);
}

// Where a block works: `group` query heads of one token row over one KV head.
template <KvType kType>
struct Work {
  const kernels::PagedKv& kv;
  const uint32_t* table;
  int64_t kv_head;
  int group;

  __device__ const uint8_t* K(int token) const {
    return kv.k + KvRowOffset<kType>(kv, table, token, kv_head);
  }
  __device__ const uint8_t* V(int token) const {
    return kv.v + KvRowOffset<kType>(kv, table, token, kv_head);
  }
};

// Has the second-level cache fetch keys and values of count tokens from `first` on. What kernels before this
// one write of them, the last token's, they write to that cache.
template <KvType kType>
__device__ void FetchTokens(const Work<kType>& work, int first, int count) {
  constexpr int kLine = 128;
  const int row_bytes = static_cast<int>(KvRowBytes<kType>(work.kv.head_dim));
  const int lines = CeilDiv(row_bytes, kLine);
  for (int i = threadIdx.x; i < count * lines; i += kThreads) {
    const int token = first + i / lines, offset = i % lines * kLine;
    FetchLine(work.K(token) + offset);
    FetchLine(work.V(token) + offset);
  }
}

// scores[g][t] = scale * q[g] . K[first + t], t < count. A warp has a token, its lanes the columns.
template <KvType kType, int kGroup>
__device__ void Scores(const Work<kType>& work, const float* q, float scale, int first, int count,
                       float (*scores)[kSplitTokens]) {
  constexpr int kAhead = kTokensAhead<kGroup>;
  const int lane = threadIdx.x % kWarp;
  const auto head_dim = static_cast<int>(work.kv.head_dim);
  for (int base = threadIdx.x / kWarp * kAhead; base < count; base += kWarps * kAhead) {
    float2 keys[kAhead][kMostPairs];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const uint8_t* row = work.K(first + min(base + a, count - 1));
#pragma unroll
      for (int i = 0; i < kMostPairs; ++i) {
        const int column = 2 * (lane + kWarp * i);
        keys[a][i] = column < head_dim ? LoadKvPair<kType>(row, head_dim, column) : float2{0, 0};
      }
    }
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      if (g >= work.group) break;
      float dots[kAhead] = {};
#pragma unroll
      for (int i = 0; i < kMostPairs; ++i) {
        const int column = 2 * (lane + kWarp * i);
        if (column >= head_dim) break;
        const float2 query = *reinterpret_cast<const float2*>(q + g * head_dim + column);
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
          dots[a] = fmaf(query.y, keys[a][i].y, fmaf(query.x, keys[a][i].x, dots[a]));
        }
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const float dot = WarpSum(dots[a]);
        if (lane == 0 && base + a < count) scores[g][base + a] = dot * scale;
      }
    }
  }
}

// Turns scores into weights relative to their largest; a warp has a query head.
__device__ void ToWeights(int group, int count, float (*scores)[kSplitTokens], Softmax* parts) {
  const int lane = threadIdx.x % kWarp;
  for (int g = threadIdx.x / kWarp; g < group; g += kWarps) {
    float max = -INFINITY;
    for (int t = lane; t < count; t += kWarp) max = MaxKeepingNaN(max, scores[g][t]);
    max = WarpMax(max);
    float sum = 0;
    for (int t = lane; t < count; t += kWarp) sum += scores[g][t] = expf(scores[g][t] - max);
    sum = WarpSum(sum);
    if (lane == 0) parts[g] = {max, sum};
  }
}

// warp_values[warp][g][column] = the warp's tokens' values times their weights.
template <KvType kType, int kGroup>
__device__ void Values(const Work<kType>& work, const float (*weights)[kSplitTokens], int first, int count,
                       float* warp_values) {
  constexpr int kAhead = kTokensAhead<kGroup>;
  const int lane = threadIdx.x % kWarp;
  const auto head_dim = static_cast<int>(work.kv.head_dim);
  float2 sums[kGroup][kMostPairs] = {};
  for (int base = threadIdx.x / kWarp; base < count; base += kWarps * kAhead) {
    float2 values[kAhead][kMostPairs];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const uint8_t* row = work.V(first + min(base + kWarps * a, count - 1));
#pragma unroll
      for (int i = 0; i < kMostPairs; ++i) {
        const int column = 2 * (lane + kWarp * i);
        values[a][i] = column < head_dim ? LoadKvPair<kType>(row, head_dim, column) : float2{0, 0};
      }
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int t = base + kWarps * a;
      if (t >= count) break;
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        if (g >= work.group) break;
        const float weight = weights[g][t];
#pragma unroll
        for (int i = 0; i < kMostPairs; ++i) {
          sums[g][i].x = fmaf(weight, values[a][i].x, sums[g][i].x);
          sums[g][i].y = fmaf(weight, values[a][i].y, sums[g][i].y);
        }
      }
    }
  }
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
#pragma unroll
    for (int i = 0; i < kMostPairs; ++i) {
      const int column = 2 * (lane + kWarp * i);
      if (g >= work.group || column >= head_dim) continue;
      *reinterpret_cast<float2*>(warp_values + ((threadIdx.x / kWarp) * kGroup + g) * head_dim + column) =
          sums[g][i];
    }
  }
}

template <int kGroup>
int64_t SharedFloats(int64_t head_dim) {
  return kGroup * (kSplitTokens + (2 + kWarps) * head_dim);
}

// Grid: token rows, KV heads times groups of kGroup query heads, splits. With one split a block walks the
// whole context and writes `out`; else it has one piece and writes its softmax and values to `partials`.
template <KvType kType, int kGroup>
__global__ void __launch_bounds__(kThreads)
    AttentionKernel(SequenceRows sequences, kernels::PagedKv kv, const float* q, int64_t heads, float scale,
                    float* partials, float* out) {
  extern __shared__ float shared[];
  LetNextStart();
  __shared__ Softmax parts[kGroup], state[kGroup];
  const int64_t row = blockIdx.x;
  const int64_t per_kv_head = heads / kv.kv_heads;
  const int64_t groups = CeilDiv<int64_t>(per_kv_head, kGroup);
  const int64_t kv_head = blockIdx.y / groups;
  const int64_t in_head = blockIdx.y % groups * kGroup;
  const int64_t first_head = kv_head * per_kv_head + in_head;
  const int length = sequences.positions[row] + 1;
  const Work<kType> work{kv, sequences.block_tables + sequences.table_offsets[row], kv_head,
                         static_cast<int>(min(static_cast<int64_t>(kGroup), per_kv_head - in_head))};
  const int cells = work.group * static_cast<int>(kv.head_dim);
  const int begin = static_cast<int>(blockIdx.z * kSplitTokens);
  FetchTokens(work, begin, min(static_cast<int>(kSplitTokens), length - begin));
  AwaitPrevious();

  auto scores = reinterpret_cast<float(*)[kSplitTokens]>(shared);
  float* queries = shared + kGroup * kSplitTokens;
  float* values = queries + kGroup * kv.head_dim;
  float* warp_values = values + kGroup * kv.head_dim;
  for (int i = threadIdx.x; i < cells; i += kThreads)
    queries[i] = q[(row * heads + first_head) * kv.head_dim + i];

  const int step = static_cast<int>(gridDim.z * kSplitTokens);
  for (int first = begin; first < length; first += step) {
    const int count = min(static_cast<int>(kSplitTokens), length - first);
    __syncthreads();
    Scores<kType, kGroup>(work, queries, scale, first, count, scores);
    __syncthreads();
    ToWeights(work.group, count, scores, parts);
    __syncthreads();
    Values<kType, kGroup>(work, scores, first, count, warp_values);
    __syncthreads();
    const bool is_first = first == begin;
    for (int i = threadIdx.x; i < cells; i += kThreads) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += warp_values[w * kGroup * kv.head_dim + i];
      float keep, take;
      Merge(state[i / kv.head_dim], parts[i / kv.head_dim], keep, take);
      values[i] = is_first ? sum : MergeValue(values[i], keep, sum, take);
    }
    __syncthreads();
    if (threadIdx.x < work.group) {
      float keep, take;
      state[threadIdx.x] =
          is_first ? parts[threadIdx.x] : Merge(state[threadIdx.x], parts[threadIdx.x], keep, take);
    }
  }
  __syncthreads();

  if (begin >= length) return;
  for (int i = threadIdx.x; i < cells; i += kThreads) {
    const int64_t head = row * heads + first_head + i / kv.head_dim;
    if (gridDim.z == 1) {
      out[head * kv.head_dim + i % kv.head_dim] = values[i] / state[i / kv.head_dim].sum;
      continue;
    }
    float* partial = partials + (head * gridDim.z + blockIdx.z) * (kv.head_dim + 2);
    partial[2 + i % kv.head_dim] = values[i];
    if (i % kv.head_dim == 0) {
      partial[0] = state[i / kv.head_dim].max;
      partial[1] = state[i / kv.head_dim].sum;
    }
  }
}

// Merges a head's pieces in the order of the context, as the kernel above does within a block.
__global__ void MergeSplits(const int32_t* positions, const float* partials, int64_t heads, int64_t head_dim,
                            int64_t splits, float* out) {
  JoinChain();
  const int64_t head = static_cast<int64_t>(blockIdx.x) * heads + blockIdx.y;
  const int pieces = positions[blockIdx.x] / static_cast<int>(kSplitTokens) + 1;
  const float* partial = partials + head * splits * (head_dim + 2);
  for (int64_t column = threadIdx.x; column < head_dim; column += blockDim.x) {
    Softmax state{partial[0], partial[1]};
    float value = partial[2 + column];
    for (int s = 1; s < pieces; ++s) {
      const float* later = partial + s * (head_dim + 2);
      float keep, take;
      state = Merge(state, {later[0], later[1]}, keep, take);
      value = MergeValue(value, keep, later[2 + column], take);
    }
    out[head * head_dim + column] = value / state.sum;
  }
}

// Query heads to a block: as many as share a KV head, so that it is read once, unless that leaves
// multiprocessors without work. `pieces` of KV heads there are in all.
int64_t HeadsTogether(int64_t pieces, int64_t per_kv_head) {
  int64_t group = per_kv_head == 1 ? 1 : per_kv_head <= 4 ? 4 : 8;
  while (group > 1 && pieces * CeilDiv(per_kv_head, group) < Multiprocessors()) group = group == 8 ? 4 : 1;
  return group;
}

template <KvType kType, int kGroup>
cudaError_t Launch(const SequenceRows& sequences, const kernels::PagedKv& kv, const float* q, int64_t heads,
                   float scale, int64_t splits, float* partials, float* out, cudaStream_t stream) {
  const auto kernel = AttentionKernel<kType, kGroup>;
  const auto shared = static_cast<int>(SharedFloats<kGroup>(kv.head_dim) * sizeof(float));
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  const int64_t groups = kv.kv_heads * CeilDiv<int64_t>(heads / kv.kv_heads, kGroup);
  const dim3 grid(static_cast<unsigned>(sequences.rows), static_cast<unsigned>(groups),
                  static_cast<unsigned>(splits));
  return LaunchChained(kernel, grid, kThreads, shared, stream, sequences, kv, q, heads, scale, partials, out);
}

}  // namespace

int64_t AttentionPartialFloats(int64_t rows, int64_t heads, int64_t head_dim, int64_t splits) {
  return splits == 1 ? 0 : rows * heads * splits * (head_dim + 2);
}

cudaError_t Attention(const SequenceRows& sequences, const kernels::PagedKv& kv, const float* q,
                      int64_t heads, float scale, int64_t splits, float* partials, float* out,
                      cudaStream_t stream) {
  if (kv.head_dim % 2 != 0 || kv.head_dim > kMostHeadDim) return cudaErrorInvalidValue;
  const int64_t group = HeadsTogether(sequences.rows * kv.kv_heads * splits, heads / kv.kv_heads);
  const cudaError_t error = DispatchKvType(kv.type, [&]<KvType kType>() {
    const auto launch = group == 1 ? Launch<kType, 1> : group == 4 ? Launch<kType, 4> : Launch<kType, 8>;
    return launch(sequences, kv, q, heads, scale, splits, partials, out, stream);
  });
  if (error != cudaSuccess || splits == 1) return error;
  const dim3 grid(static_cast<unsigned>(sequences.rows), static_cast<unsigned>(heads));
  return LaunchChained(MergeSplits, grid, kThreads, 0, stream, sequences.positions, partials, heads,
                       kv.head_dim, splits, out);
}

}  // namespace isotherm::gpu_worker::cuda
