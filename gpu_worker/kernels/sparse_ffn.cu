#include <algorithm>

#include "common/neuron/mask.h"
#include "gpu_worker/kernels/activation.cuh"
#include "gpu_worker/kernels/chain.cuh"
#include "gpu_worker/kernels/sparse_ffn.h"
#include "gpu_worker/kernels/staged_input.cuh"

namespace isotherm::gpu_worker::cuda {
namespace {

constexpr int kThreads = 512;

// Selects sums[lane] without an index into registers.
template <int kBatch>
__device__ float Mine(const float (&sums)[kBatch]) {
  float mine = 0;
#pragma unroll
  for (int b = 0; b < kBatch; ++b) mine = threadIdx.x % kWarp == b ? sums[b] : mine;
  return mine;
}

// Of the warp that has neuron k: in how many of its lanes' rows it fires. No other warp of the launch has it.
__device__ unsigned CountFirings(const HotNeurons& neurons, int64_t k, bool fires) {
  const unsigned count = __popc(__ballot_sync(kAllLanes, fires));
  if (count != 0 && neurons.firings != nullptr && threadIdx.x % kWarp == 0) {
    neurons.firings[neurons.ids[k]] += count;
  }
  return count;
}

// Places of the block's own share of the neurons, those that have work.
struct BlockNeurons {
  static constexpr int64_t kMost = 1024;
  int32_t places[kMost];
  int count;

  // By all threads; has_work(k) tells. Ends with a barrier. The order is arbitrary, as no neuron's result
  // depends on it.
  template <typename HasWork>
  __device__ void Collect(int64_t neurons, const HasWork& has_work) {
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    const int64_t end = neurons * (blockIdx.x + 1) / gridDim.x;
    for (int64_t k = neurons * blockIdx.x / gridDim.x + threadIdx.x; k < end; k += kThreads) {
      if (has_work(k)) places[atomicAdd(&count, 1)] = static_cast<int32_t>(k);
    }
    __syncthreads();
  }
};

template <typename D, int kBatch>
__global__ void __launch_bounds__(kThreads, kBatch == 1 ? 2 : 1)
    GateRowsKernel(HotNeurons neurons, BundleRow gate, FfnRows rows, GateActivation activation, float* values,
                   FfnCounters* counters) {
  JoinChain();
  extern __shared__ float4 memory[];
  __shared__ BlockNeurons mine;
  StagedInput<D, kBatch> input(memory, neurons.hidden);
  const int64_t words = neuron::MaskWords(neurons.ffn);
  mine.Collect(neurons.count, [&](int64_t k) {
    bool wanted = false;
    for (int64_t b = 0; b < rows.rows; ++b) {
      wanted |= Wanted(rows.masks, words, b, neurons.ids[k]);
      values[b * neurons.count + k] = 0;
    }
    return wanted;
  });
  input.Fill(rows.x, neurons.hidden, rows.rows);
  const int lane = threadIdx.x % kWarp;
  unsigned long long computed = 0, active = 0;
  for (int i = threadIdx.x / kWarp; i < mine.count; i += kThreads / kWarp) {
    const int64_t k = mine.places[i];
    const bool wanted = lane < rows.rows && Wanted(rows.masks, words, lane, neurons.ids[k]);
    const uint8_t* const row[1] = {neurons.bundles + k * neurons.bundle_bytes + gate.offset};
    float sums[1][kBatch];
    DotRows<D>(row, neurons.hidden, input, sums);
    const float value =
        wanted ? Activate(activation, Mine(sums[0]) + Bias(neurons, k, gate.bias_offset)) : 0.0f;
    computed += __popc(__ballot_sync(kAllLanes, wanted));
    active += CountFirings(neurons, k, value != 0 && !activation.gated);
    if (wanted) values[lane * neurons.count + k] = value;
  }
  if (lane == 0 && computed != 0) {
    atomicAdd(&counters->computed, computed);
    atomicAdd(&counters->active, active);
  }
}

__global__ void ActivateGatesKernel(HotNeurons neurons, GateSource gates, FfnRows rows,
                                    GateActivation activation, float* values, FfnCounters* counters) {
  JoinChain();
  const int64_t words = neuron::MaskWords(neurons.ffn);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t total = rows.rows * neurons.count;
  unsigned long long computed = 0, active = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const int64_t row = i / neurons.count, k = i % neurons.count;
    const int32_t id = neurons.ids[k];
    const bool wanted = Wanted(rows.masks, words, row, id);
    const float product = gates.products[row * gates.stride + (gates.by_id ? id : k)];
    const float value = wanted ? Activate(activation, product + Bias(neurons, k, gates.bias_offset)) : 0.0f;
    values[i] = value;
    computed += wanted;
    const bool fires = value != 0 && !activation.gated;
    active += fires;
    if (fires && neurons.firings != nullptr) atomicAdd(&neurons.firings[id], 1u);
  }
  computed = WarpSum(computed);
  active = WarpSum(active);
  if (threadIdx.x % kWarp == 0 && computed != 0) {
    atomicAdd(&counters->computed, computed);
    atomicAdd(&counters->active, active);
  }
}

template <typename D, int kBatch>
__global__ void __launch_bounds__(kThreads, kBatch == 1 ? 2 : 1)
    MultiplyByUpKernel(HotNeurons neurons, BundleRow up, FfnRows rows, GateActivation activation,
                       float* values, FfnCounters* counters) {
  JoinChain();
  extern __shared__ float4 memory[];
  __shared__ BlockNeurons mine;
  StagedInput<D, kBatch> input(memory, neurons.hidden);
  mine.Collect(neurons.count, [&](int64_t k) {
    bool active = false;
    for (int64_t b = 0; b < rows.rows; ++b) active |= values[b * neurons.count + k] != 0;
    return active;
  });
  input.Fill(rows.x, neurons.hidden, rows.rows);
  const int lane = threadIdx.x % kWarp;
  unsigned long long active = 0;
  for (int i = threadIdx.x / kWarp; i < mine.count; i += kThreads / kWarp) {
    const int64_t k = mine.places[i];
    const float value = lane < rows.rows ? values[lane * neurons.count + k] : 0.0f;
    const uint8_t* const row[1] = {neurons.bundles + k * neurons.bundle_bytes + up.offset};
    float sums[1][kBatch];
    DotRows<D>(row, neurons.hidden, input, sums);
    const float product = value == 0 ? 0.0f : value * UpFactor(activation, Mine(sums[0]));
    if (value != 0) values[lane * neurons.count + k] = product;
    active += CountFirings(neurons, k, product != 0);
  }
  if (lane == 0 && active != 0) atomicAdd(&counters->active, active);
}

constexpr int kDownThreads = 128;
constexpr int64_t kMostPartitionNeurons = 512;

// Contiguous neurons whose down rows one block adds up for its columns. A function of the neurons alone,
// never of the batch: a row's sums must not depend on what shares its pass.
__host__ __device__ inline int64_t Partitions(int64_t neurons) {
  constexpr int64_t kLeast = 16;  // neurons of a partition
  constexpr int64_t kUsual = 64;  // partitions, enough to fill the device together with the columns
  const int64_t filling = min(max(neurons / kLeast, int64_t{1}), kUsual);
  return max(filling, CeilDiv(neurons, kMostPartitionNeurons));
}

// The active neurons of a partition in ascending order, with their values.
template <int kBatch>
struct ActiveNeurons {
  int32_t places[kMostPartitionNeurons];
  float values[kMostPartitionNeurons][kBatch];
  int warp_counts[kDownThreads / kWarp];

  // By all threads of the block; returns how many there are.
  __device__ int Collect(const float* all, int64_t count, int64_t begin, int64_t end, int64_t batch) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int found = 0;
    for (int64_t base = begin; base < end; base += kDownThreads) {
      const int64_t k = base + threadIdx.x;
      float mine[kBatch];
      bool active = false;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        mine[b] = k < end && b < batch ? all[b * count + k] : 0.0f;
        active |= mine[b] != 0;
      }
      const unsigned ballot = __ballot_sync(kAllLanes, active);
      if (lane == 0) warp_counts[warp] = __popc(ballot);
      __syncthreads();
      int place = found + __popc(ballot & ((1u << lane) - 1));
#pragma unroll
      for (int w = 0; w < kDownThreads / kWarp; ++w) {
        place += w < warp ? warp_counts[w] : 0;
        found += warp_counts[w];
      }
      if (active) {
        places[place] = static_cast<int32_t>(k);
#pragma unroll
        for (int b = 0; b < kBatch; ++b) values[place][b] = mine[b];
      }
      __syncthreads();
    }
    return found;
  }
};

// Grid: partitions, pieces of kDownThreads chunks of columns. partials [partitions, batch, hidden].
template <typename D, int kBatch>
__global__ void __launch_bounds__(kDownThreads)
    DownKernel(HotNeurons neurons, int64_t offset, const float* values, int64_t batch, float* partials) {
  JoinChain();
  constexpr int kAhead = 4;
  __shared__ ActiveNeurons<kBatch> active;
  const int64_t partition = blockIdx.x;
  const int64_t begin = neurons.count * partition / gridDim.x,
                end = neurons.count * (partition + 1) / gridDim.x;
  const int found = active.Collect(values, neurons.count, begin, end, batch);
  const int64_t chunk = static_cast<int64_t>(blockIdx.y) * kDownThreads + threadIdx.x;
  if (chunk >= Chunks<D>(neurons.hidden)) return;

  float sums[kBatch][D::kRuns][kRunColumns] = {};
  const uint8_t* rows = neurons.bundles + offset;
  for (int i = 0; i < found; i += kAhead) {
    typename D::Raw raw[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (i + a < found)
        raw[a] = D::Load(rows + active.places[i + a] * neurons.bundle_bytes, neurons.hidden, chunk);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (i + a >= found) break;
      float weights[D::kRuns][kRunColumns];
      D::Decode(raw[a], chunk, weights);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const float value = active.values[i + a][b];
#pragma unroll
        for (int c = 0; c < D::kRuns * kRunColumns; ++c) {
          float& sum = sums[b][c / kRunColumns][c % kRunColumns];
          sum = fmaf(value, weights[c / kRunColumns][c % kRunColumns], sum);
        }
      }
    }
  }
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
    if (b >= batch) break;
    float* out = partials + (partition * batch + b) * neurons.hidden;
#pragma unroll
    for (int c = 0; c < D::kRuns * kRunColumns; ++c) {
      const int64_t column = D::Column(chunk, c / kRunColumns) + c % kRunColumns;
      if (column < neurons.hidden) out[column] = sums[b][c / kRunColumns][c % kRunColumns];
    }
  }
}

// y[i] = sum of partials[p, i] in the order of p.
__global__ void SumPartials(const float* partials, int64_t partitions, int64_t cells, float* y) {
  JoinChain();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= cells) return;
  float sum = 0;
#pragma unroll 32
  for (int64_t p = 0; p < partitions; ++p) sum += partials[p * cells + i];
  y[i] = sum;
}

// Token rows of one launch: what the accumulators of a thread leave room for.
template <typename D>
inline constexpr int kDownBatch = D::kRuns == 1   ? 8
                                  : D::kRuns == 2 ? 4
                                                  : 2;

template <typename D, int kBatch>
cudaError_t LaunchDown(const HotNeurons& neurons, const BundleRow& down, int64_t batch, const float* values,
                       float* partials, float* y, cudaStream_t stream) {
  constexpr int kSumThreads = 128;
  const int64_t partitions = Partitions(neurons.count);
  const dim3 grid(static_cast<unsigned>(partitions),
                  static_cast<unsigned>(CeilDiv<int64_t>(Chunks<D>(neurons.hidden), kDownThreads)));
  const cudaError_t error = LaunchChained(DownKernel<D, kBatch>, grid, kDownThreads, 0, stream, neurons,
                                          down.offset, values, batch, partials);
  if (error != cudaSuccess) return error;
  const int64_t cells = batch * neurons.hidden;
  return LaunchChained(SumPartials, Blocks(cells, kSumThreads), kSumThreads, 0, stream, partials, partitions,
                       cells, y);
}

// Token rows [first, first + batch) of `rows`.
FfnRows Part(const FfnRows& rows, const HotNeurons& neurons, int64_t first, int64_t batch) {
  return {rows.x + first * neurons.hidden, rows.masks + first * neuron::MaskWords(neurons.ffn), batch};
}

unsigned RowBlocks(int64_t neurons) {
  constexpr int64_t kBlocksEach = 2;  // as in mat_mul.cu
  const int64_t filling =
      std::min(CeilDiv<int64_t>(neurons, kThreads / kWarp), kBlocksEach * Multiprocessors());
  return static_cast<unsigned>(std::max(filling, CeilDiv(neurons, BlockNeurons::kMost)));
}

template <typename Kernel>
cudaError_t AllowShared(Kernel kernel, int64_t bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

}  // namespace

cudaError_t GateRows(const HotNeurons& neurons, const BundleRow& gate, const FfnRows& rows,
                     const GateActivation& activation, float* values, FfnCounters* counters,
                     cudaStream_t stream) {
  return ForEachBatch(gate.type, neurons.hidden, rows.rows,
                      [&]<typename D, int kBatch>(int64_t first, int64_t batch) {
                        const int64_t shared = StagedInput<D, kBatch>::Bytes(neurons.hidden);
                        const cudaError_t error = AllowShared(GateRowsKernel<D, kBatch>, shared);
                        if (error != cudaSuccess) return error;
                        return LaunchChained(GateRowsKernel<D, kBatch>, RowBlocks(neurons.count), kThreads,
                                             shared, stream, neurons, gate, Part(rows, neurons, first, batch),
                                             activation, values + first * neurons.count, counters);
                      });
}

cudaError_t ActivateGates(const HotNeurons& neurons, const GateSource& gates, const FfnRows& rows,
                          const GateActivation& activation, float* values, FfnCounters* counters,
                          cudaStream_t stream) {
  return LaunchChained(ActivateGatesKernel, Blocks(rows.rows * neurons.count, kThreads), kThreads, 0, stream,
                       neurons, gates, rows, activation, values, counters);
}

cudaError_t MultiplyByUpRows(const HotNeurons& neurons, const BundleRow& up, const FfnRows& rows,
                             const GateActivation& activation, float* values, FfnCounters* counters,
                             cudaStream_t stream) {
  return ForEachBatch(
      up.type, neurons.hidden, rows.rows, [&]<typename D, int kBatch>(int64_t first, int64_t batch) {
        const int64_t shared = StagedInput<D, kBatch>::Bytes(neurons.hidden);
        const cudaError_t error = AllowShared(MultiplyByUpKernel<D, kBatch>, shared);
        if (error != cudaSuccess) return error;
        return LaunchChained(MultiplyByUpKernel<D, kBatch>, RowBlocks(neurons.count), kThreads, shared,
                             stream, neurons, up, Part(rows, neurons, first, batch), activation,
                             values + first * neurons.count, counters);
      });
}

int64_t DownPartialFloats(int64_t neurons, int64_t hidden, int64_t rows) {
  constexpr int64_t kMostBatch = 8;  // the largest kDownBatch
  return Partitions(neurons) * std::min(rows, kMostBatch) * hidden;
}

cudaError_t DownRows(const HotNeurons& neurons, const BundleRow& down, int64_t rows, const float* values,
                     float* partials, float* y, cudaStream_t stream) {
  return DispatchWeightType(down.type, [&]<WeightType kType>() {
    using D = Decoder<kType>;
    for (int64_t first = 0; first < rows; first += kDownBatch<D>) {
      const int64_t batch = std::min<int64_t>(kDownBatch<D>, rows - first);
      const auto launch = batch == 1 ? LaunchDown<D, 1> : LaunchDown<D, kDownBatch<D>>;
      const cudaError_t error = launch(neurons, down, batch, values + first * neurons.count, partials,
                                       y + first * neurons.hidden, stream);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}

}  // namespace isotherm::gpu_worker::cuda
