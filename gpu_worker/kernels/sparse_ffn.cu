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
__device__ unsigned CountFirings(const NeuronSet& neurons, int64_t k, bool fires) {
  const unsigned count = __popc(__ballot_sync(kAllLanes, fires));
  if (count != 0 && neurons.firings != nullptr && threadIdx.x % kWarp == 0) {
    neurons.firings[Id(neurons, k)] += count;
  }
  return count;
}

// Both parts in one grid, the bus's first, as they take longest.
struct Shares {
  FfnParts parts;
  unsigned bus_blocks;
  unsigned hot_blocks;

  unsigned all_blocks() const { return bus_blocks + hot_blocks; }
};

// The block's own part, and which of its neurons.
struct BlockShare {
  const FfnPart& part;
  int64_t begin, end;

  __device__ explicit BlockShare(const Shares& shares)
      : part(blockIdx.x < shares.bus_blocks ? shares.parts.bus : shares.parts.hot) {
    const bool bus = blockIdx.x < shares.bus_blocks;
    const int64_t block = bus ? blockIdx.x : blockIdx.x - shares.bus_blocks;
    const int64_t blocks = bus ? shares.bus_blocks : shares.hot_blocks;
    begin = part.neurons.count * block / blocks;
    end = part.neurons.count * (block + 1) / blocks;
  }
};

// Places of the block's own share of the neurons, those that have work.
struct BlockNeurons {
  static constexpr int64_t kMost = 1024;
  int32_t places[kMost];
  int count;

  // By all threads; has_work(k) tells. Ends with a barrier. The order is arbitrary, as no neuron's result
  // depends on it.
  template <typename HasWork>
  __device__ void Collect(const BlockShare& share, const HasWork& has_work) {
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    for (int64_t k = share.begin + threadIdx.x; k < share.end; k += kThreads) {
      if (has_work(k)) places[atomicAdd(&count, 1)] = static_cast<int32_t>(k);
    }
    __syncthreads();
  }
};

template <typename D, int kBatch>
__global__ void __launch_bounds__(kThreads, kBatch == 1 ? 2 : 1)
    GateRowsKernel(const __grid_constant__ Shares shares, BundleRow gate, int64_t up_offset, FfnRows rows,
                   GateActivation activation) {
  JoinChain();
  extern __shared__ float4 memory[];
  __shared__ BlockNeurons mine;
  const BlockShare share(shares);
  const NeuronSet& neurons = share.part.neurons;
  float* const values = share.part.values;
  StagedInput<D, kBatch> input(memory, neurons.hidden);
  mine.Collect(share, [&](int64_t k) {
    bool wanted = false;
    for (int64_t b = 0; b < rows.rows; ++b) {
      wanted |= Wanted(neurons, rows.masks, b, k);
      values[b * neurons.count + k] = 0;
    }
    return wanted;
  });
  input.Fill(rows.x, neurons.hidden, rows.rows);
  const int lane = threadIdx.x % kWarp;
  unsigned long long computed = 0, active = 0;
  for (int i = threadIdx.x / kWarp; i < mine.count; i += kThreads / kWarp) {
    const int64_t k = mine.places[i];
    const bool wanted = lane < rows.rows && Wanted(neurons, rows.masks, lane, k);
    const uint8_t* const bundle = neurons.bundles + k * neurons.bundle_bytes;
    const uint8_t* row[1] = {bundle + gate.offset};
    float sums[1][kBatch];
    DotRows<D>(row, neurons.hidden, input, sums);
    float value = wanted ? Activate(activation, Mine(sums[0]) + Bias(neurons, k, gate.bias_offset)) : 0.0f;
    computed += __popc(__ballot_sync(kAllLanes, wanted));
    if (up_offset != 0 && __any_sync(kAllLanes, value != 0)) {
      row[0] = bundle + up_offset;
      DotRows<D>(row, neurons.hidden, input, sums);
      if (value != 0) value *= UpFactor(activation, Mine(sums[0]));
    }
    // A gate alone does not tell whether its neuron fires.
    active += CountFirings(neurons, k, value != 0 && (up_offset != 0 || !activation.gated));
    if (wanted) values[lane * neurons.count + k] = value;
  }
  if (lane == 0 && computed != 0) {
    atomicAdd(&share.part.counters->computed, computed);
    atomicAdd(&share.part.counters->active, active);
  }
}

// Grid: blocks for the pairs of rows and neurons, parts.
__global__ void ActivateGatesKernel(const __grid_constant__ FfnParts parts, GateSource gates, FfnRows rows,
                                    GateActivation activation) {
  JoinChain();
  const FfnPart& part = blockIdx.y == 1 ? parts.bus : parts.hot;
  const NeuronSet& neurons = part.neurons;
  const int64_t count = neurons.count;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  unsigned long long computed = 0, active = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows.rows * count;
       i += step) {
    const int64_t row = i / count, k = i % count;
    const int32_t id = Id(neurons, k);
    const bool wanted = Wanted(neurons, rows.masks, row, k);
    const float product = gates.products[row * gates.stride + (gates.by_id ? id : k)];
    const float value = wanted ? Activate(activation, product + Bias(neurons, k, gates.bias_offset)) : 0.0f;
    part.values[i] = value;
    computed += wanted;
    const bool fires = value != 0 && !activation.gated;
    active += fires;
    if (fires && neurons.firings != nullptr) atomicAdd(&neurons.firings[id], 1u);
  }
  computed = WarpSum(computed);
  active = WarpSum(active);
  if (threadIdx.x % kWarp == 0 && computed != 0) {
    atomicAdd(&part.counters->computed, computed);
    atomicAdd(&part.counters->active, active);
  }
}

template <typename D, int kBatch>
__global__ void __launch_bounds__(kThreads, kBatch == 1 ? 2 : 1)
    MultiplyByUpKernel(const __grid_constant__ Shares shares, BundleRow up, FfnRows rows,
                       GateActivation activation) {
  JoinChain();
  extern __shared__ float4 memory[];
  __shared__ BlockNeurons mine;
  const BlockShare share(shares);
  const NeuronSet& neurons = share.part.neurons;
  float* const values = share.part.values;
  StagedInput<D, kBatch> input(memory, neurons.hidden);
  mine.Collect(share, [&](int64_t k) {
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
  if (lane == 0 && active != 0) atomicAdd(&share.part.counters->active, active);
}

constexpr int kDownThreads = 128;
constexpr int64_t kMostPartitionNeurons = 512;

// Contiguous neurons whose down rows one block adds up for its columns. A function of the neurons alone,
// never of the batch: a row's sums must not depend on what shares its pass.`usual` are enough to fill the
// device together with the columns.
int64_t Partitions(int64_t neurons, int64_t usual) {
  constexpr int64_t kLeast = 16;  // neurons of a partition
  const int64_t filling = std::clamp<int64_t>(neurons / kLeast, 1, usual);
  return std::max(filling, CeilDiv(neurons, kMostPartitionNeurons));
}
int64_t HotPartitions(int64_t neurons) { return Partitions(neurons, 64); }
int64_t BusPartitions(int64_t neurons) { return neurons == 0 ? 0 : Partitions(neurons, 16); }

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

// Grid: partitions of both parts, pieces of kDownThreads chunks of columns. partials [partitions, batch,
// hidden].
template <typename D, int kBatch>
__global__ void __launch_bounds__(kDownThreads)
    DownKernel(const __grid_constant__ Shares shares, int64_t offset, int64_t batch, float* partials) {
  JoinChain();
  constexpr int kAhead = 4;
  __shared__ ActiveNeurons<kBatch> active;
  const BlockShare share(shares);
  const NeuronSet& neurons = share.part.neurons;
  const int found = active.Collect(share.part.values, neurons.count, share.begin, share.end, batch);
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
    float* out = partials + (blockIdx.x * batch + b) * neurons.hidden;
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
cudaError_t LaunchDown(const FfnParts& parts, const BundleRow& down, int64_t batch, float* partials, float* y,
                       cudaStream_t stream) {
  constexpr int kSumThreads = 128;
  const int64_t hidden = parts.hot.neurons.hidden;
  const Shares shares{parts, static_cast<unsigned>(BusPartitions(parts.bus.neurons.count)),
                      static_cast<unsigned>(HotPartitions(parts.hot.neurons.count))};
  const dim3 grid(shares.all_blocks(),
                  static_cast<unsigned>(CeilDiv<int64_t>(Chunks<D>(hidden), kDownThreads)));
  const cudaError_t error = LaunchChained(DownKernel<D, kBatch>, grid, kDownThreads, 0, stream, shares,
                                          down.offset, batch, partials);
  if (error != cudaSuccess) return error;
  const int64_t cells = batch * hidden;
  return LaunchChained(SumPartials, Blocks(cells, kSumThreads), kSumThreads, 0, stream, partials,
                       int64_t{shares.all_blocks()}, cells, y);
}

// Token rows [first, first + batch) of `rows`.
FfnRows Part(const FfnRows& rows, const NeuronSet& neurons, int64_t first, int64_t batch) {
  return {rows.x + first * neurons.hidden, rows.masks + first * neuron::MaskWords(neurons.ffn), batch};
}

FfnParts FromRow(FfnParts parts, int64_t first) {
  for (FfnPart* part : {&parts.bus, &parts.hot}) part->values += first * part->neurons.count;
  return parts;
}

// Of kernels that have a warp for a neuron.
Shares RowShares(const FfnParts& parts, int64_t first) {
  constexpr int64_t kBlocksEach = 2;  // as in mat_mul.cu
  constexpr int64_t kBusBlocks = 32;  // ask for more at once than the bus brings
  const auto blocks = [](int64_t neurons, int64_t most) {
    return std::max(std::min(CeilDiv<int64_t>(neurons, kThreads / kWarp), most),
                    CeilDiv(neurons, BlockNeurons::kMost));
  };
  const int64_t bus = blocks(parts.bus.neurons.count, kBusBlocks);
  const int64_t all = kBlocksEach * Multiprocessors();
  const int64_t hot = blocks(parts.hot.neurons.count, all - bus);
  return {FromRow(parts, first), static_cast<unsigned>(bus), static_cast<unsigned>(hot)};
}

template <typename Kernel>
cudaError_t AllowShared(Kernel kernel, int64_t bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

}  // namespace

cudaError_t GateRows(const FfnParts& parts, const BundleRow& gate, const BundleRow* up, const FfnRows& rows,
                     const GateActivation& activation, cudaStream_t stream) {
  const NeuronSet& neurons = parts.hot.neurons;
  const int64_t up_offset = up == nullptr ? 0 : up->offset;
  return ForEachBatch(
      gate.type, neurons.hidden, rows.rows, [&]<typename D, int kBatch>(int64_t first, int64_t batch) {
        const int64_t shared = StagedInput<D, kBatch>::Bytes(neurons.hidden);
        const cudaError_t error = AllowShared(GateRowsKernel<D, kBatch>, shared);
        if (error != cudaSuccess) return error;
        const Shares shares = RowShares(parts, first);
        return LaunchChained(GateRowsKernel<D, kBatch>, shares.all_blocks(), kThreads, shared, stream, shares,
                             gate, up_offset, Part(rows, neurons, first, batch), activation);
      });
}

cudaError_t ActivateGates(const FfnParts& parts, const GateSource& gates, const FfnRows& rows,
                          const GateActivation& activation, cudaStream_t stream) {
  const int64_t most = std::max(parts.hot.neurons.count, parts.bus.neurons.count);
  const dim3 grid(Blocks(rows.rows * most, kThreads), parts.bus.neurons.count > 0 ? 2 : 1);
  return LaunchChained(ActivateGatesKernel, grid, kThreads, 0, stream, parts, gates, rows, activation);
}

cudaError_t MultiplyByUpRows(const FfnParts& parts, const BundleRow& up, const FfnRows& rows,
                             const GateActivation& activation, cudaStream_t stream) {
  const NeuronSet& neurons = parts.hot.neurons;
  return ForEachBatch(
      up.type, neurons.hidden, rows.rows, [&]<typename D, int kBatch>(int64_t first, int64_t batch) {
        const int64_t shared = StagedInput<D, kBatch>::Bytes(neurons.hidden);
        const cudaError_t error = AllowShared(MultiplyByUpKernel<D, kBatch>, shared);
        if (error != cudaSuccess) return error;
        const Shares shares = RowShares(parts, first);
        return LaunchChained(MultiplyByUpKernel<D, kBatch>, shares.all_blocks(), kThreads, shared, stream,
                             shares, up, Part(rows, neurons, first, batch), activation);
      });
}

int64_t DownPartialFloats(int64_t ffn, int64_t hidden, int64_t rows) {
  constexpr int64_t kMostBatch = 8;  // the largest kDownBatch
  return (BusPartitions(ffn) + HotPartitions(ffn)) * std::min(rows, kMostBatch) * hidden;
}

cudaError_t DownRows(const FfnParts& parts, const BundleRow& down, int64_t rows, float* partials, float* y,
                     cudaStream_t stream) {
  return DispatchWeightType(down.type, [&]<WeightType kType>() {
    using D = Decoder<kType>;
    for (int64_t first = 0; first < rows; first += kDownBatch<D>) {
      const int64_t batch = std::min<int64_t>(kDownBatch<D>, rows - first);
      const auto launch = batch == 1 ? LaunchDown<D, 1> : LaunchDown<D, kDownBatch<D>>;
      const cudaError_t error =
          launch(FromRow(parts, first), down, batch, partials, y + first * parts.hot.neurons.hidden, stream);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}

}  // namespace isotherm::gpu_worker::cuda
