#include <algorithm>

#include "common/neuron/mask.h"
#include "gpu_worker/kernels/activation.cuh"
#include "gpu_worker/kernels/block_share.cuh"
#include "gpu_worker/kernels/chain.cuh"
#include "gpu_worker/kernels/sparse_ffn.h"
#include "gpu_worker/kernels/tile_dots.cuh"
#include "gpu_worker/kernels/token_batches.cuh"

namespace isotherm::gpu_worker::cuda {
namespace {

constexpr int kThreads = 512;
// Of a block that has neurons, and blocks to a multiprocessor: sixteen warps keep its loads in flight, in two
// blocks where token rows leave room, so that one loads while the other adds up.
template <int kBatch>
inline constexpr int kRowThreads = kBatch == 1 ? 256 : 512;
template <int kBatch>
inline constexpr int kTileBlocks = kBatch == 1 ? 2 : 1;

// Scattered rows seldom fill a tile. That pays where decoding is the larger part of the work; a warp has more
// of an F16 row under way.
template <typename D>
inline constexpr bool kGathersTiles = HasTiles<D>&& HasOneScale<D>;

// Without tiles a thread needs fewer registers.
template <typename D, int kBatch>
inline constexpr int kRowBlocks =
    kGathersTiles<D> || kBatch > 1 ? kTileBlocks<kBatch> : kTileBlocks<kBatch> + 1;

// Of a thread, then of all.
struct Tally {
  unsigned long long computed = 0, active = 0;

  __device__ void AddTo(FfnCounters* counters) {
    computed = WarpSum(computed);
    active = WarpSum(active);
    if (threadIdx.x % kWarp != 0) return;
    if (computed != 0) atomicAdd(&counters->computed, computed);
    if (active != 0) atomicAdd(&counters->active, active);
  }
};

__device__ void CountFiring(const NeuronSet& neurons, int64_t k) {
  if (neurons.firings != nullptr) atomicAdd(&neurons.firings[Id(neurons, k)], 1u);
}

// Places of the block's own share of the neurons, those that have work.
struct BlockNeurons {
  static constexpr int64_t kMost = 1024;
  int32_t places[kMost];
  int count;

  // By all threads; has_work(i) tells whether place(i), i in [begin, end), does. Ends with a barrier. The
  // order is arbitrary, as no neuron's result depends on it.
  template <typename Place, typename HasWork>
  __device__ void Collect(int64_t begin, int64_t end, const Place& place, const HasWork& has_work) {
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
      const int64_t k = place(i);
      if (has_work(k)) places[atomicAdd(&count, 1)] = static_cast<int32_t>(k);
    }
    __syncthreads();
  }
};

// How a block multiplies rows, given by where they lie, with the token rows: done(i, b, product) is called by
// one thread for row i < count and token row b < kBatch, and a barrier follows. Start may be called before,
// with the same arguments, to have loads under way.

// A warp has a row, and reads as much of it at once as it can: what the bus wants.
template <typename D, int kBatch>
class WarpRows {
 public:
  __device__ WarpRows(void* memory, int64_t columns)
      : input_(static_cast<float4*>(memory), columns), columns_(columns) {}

  template <typename Row>
  __device__ void Start(int, const Row&) {}
  __device__ void Fill(const float* x, int64_t batch) { input_.Fill(x, columns_, batch); }

  template <typename Row, typename Done>
  __device__ void Run(int count, const Row& row, const Done& done) {
    const int warps = static_cast<int>(blockDim.x) / kWarp, lane = threadIdx.x % kWarp;
    for (int i = threadIdx.x / kWarp; i < count; i += warps) {
      const uint8_t* const rows[1] = {row(i)};
      float sums[1][kBatch];
      DotRows<D>(rows, columns_, input_, sums);
      // Selects sums[0][lane] without an index into registers.
      float mine = 0;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) mine = lane == b ? sums[0][b] : mine;
      if (lane < kBatch) done(i, lane, mine);
    }
    __syncthreads();
  }

 private:
  StagedInput<D, kBatch> input_;
  int64_t columns_;
};

// Sixteen rows to a tile.
template <typename D, int kBatch>
class TileRows {
 public:
  __device__ TileRows(void* memory, int64_t columns, int sharing)
      : input_(memory, columns), dots_(input_, columns, sharing) {}

  template <typename Row>
  __device__ __forceinline__ void Start(int count, const Row& row) {
    dots_.Start(Tiles(count), InTiles(count, row));
  }
  __device__ void Fill(const float* x, int64_t batch) { input_.Fill(x, batch); }

  template <typename Row, typename Done>
  __device__ __forceinline__ void Run(int count, const Row& row, const Done& done) {
    dots_.Run(Tiles(count), InTiles(count, row), [&](int tile, int i, int b, float product) {
      const int place = tile * kTileRows + i;
      if (place < count) done(place, b, product);
    });
  }

 private:
  using Dots = TileDots<D, kBatch, kRowThreads<kBatch>>;
  __device__ typename Dots::Tiles Tiles(int count) const {
    return {0, CeilDiv(count, kTileRows), dots_.groups()};
  }
  template <typename Row>
  static __device__ auto InTiles(int count, const Row& row) {
    return [count, &row](int tile, int i) { return row(min(tile * kTileRows + i, count - 1)); };
  }

  TileInput<D, kBatch> input_;
  Dots dots_;
};

// Calls use(rows), the way in which the block multiplies.
template <typename D, int kBatch, typename Use>
__device__ __forceinline__ void WithRows(bool on_bus, int64_t columns, int sharing, const Use& use) {
  extern __shared__ float4 memory[];
  if constexpr (kGathersTiles<D>) {
    if (!on_bus) {
      TileRows<D, kBatch> rows(memory, columns, sharing);
      return use(rows);
    }
  }
  WarpRows<D, kBatch> rows(memory, columns);
  use(rows);
}

// What a block does with its share of a part for the token rows.
template <int kBatch>
struct BlockFfn {
  const FfnPart& part;
  const FfnRows& rows;
  const GateActivation& activation;
  Tally tally;

  __device__ bool HasValue(int64_t k) const {
    bool has = false;
    for (int64_t b = 0; b < rows.rows; ++b) has |= part.values[b * part.neurons.count + k] != 0;
    return has;
  }

  // Of a neuron without value yet.
  __device__ bool ClearAndTell(int64_t k) const {
    bool wanted = false;
    for (int64_t b = 0; b < rows.rows; ++b) {
      wanted |= Wanted(part.neurons, rows.masks, b, k);
      part.values[b * part.neurons.count + k] = 0;
    }
    return wanted;
  }

  __device__ void PutGate(const BundleRow& gate, bool last, int64_t k, int b, float product) {
    if (b >= rows.rows || !Wanted(part.neurons, rows.masks, b, k)) return;
    const float value = Activate(activation, product + Bias(part.neurons, k, gate.bias_offset));
    part.values[b * part.neurons.count + k] = value;
    ++tally.computed;
    if (last && value != 0) Fire(k);
  }

  __device__ void MultiplyByUp(int64_t k, int b, float product) {
    float* const value = part.values + b * part.neurons.count + k;
    if (b >= rows.rows || *value == 0) return;
    *value *= UpFactor(activation, product);
    if (*value != 0) Fire(k);
  }

  __device__ void Fire(int64_t k) {
    ++tally.active;
    CountFiring(part.neurons, k);
  }
};

struct RowKernelCall {
  Shares shares;
  FfnRows rows;
  GateActivation activation;
  int sharing;  // TileSharing
};

template <typename D, int kBatch>
__global__ void __launch_bounds__(kRowThreads<kBatch>, kRowBlocks<D, kBatch>)
    GateRowsKernel(const __grid_constant__ RowKernelCall call, BundleRow gate, int64_t up_offset) {
  JoinChain();
  __shared__ BlockNeurons wanted, active;
  const BlockShare share(call.shares);
  const NeuronSet& neurons = share.part.neurons;
  BlockFfn<kBatch> ffn{share.part, call.rows, call.activation, {}};
  wanted.Collect(
      share.begin, share.end, [](int64_t k) { return k; }, [&](int64_t k) { return ffn.ClearAndTell(k); });
  WithRows<D, kBatch>(share.on_bus, neurons.hidden, call.sharing, [&](auto& rows) {
    const auto gate_row = [&](int i) { return Bundle(neurons, wanted.places[i]) + gate.offset; };
    rows.Start(wanted.count, gate_row);
    rows.Fill(call.rows.x, call.rows.rows);
    // A gate alone does not tell whether its neuron fires.
    const bool last = up_offset == 0 && !call.activation.gated;
    rows.Run(wanted.count, gate_row,
             [&](int i, int b, float product) { ffn.PutGate(gate, last, wanted.places[i], b, product); });
    if (up_offset == 0) return;
    active.Collect(
        0, wanted.count, [&](int64_t i) { return wanted.places[i]; },
        [&](int64_t k) { return ffn.HasValue(k); });
    const auto up_row = [&](int i) { return Bundle(neurons, active.places[i]) + up_offset; };
    rows.Start(active.count, up_row);
    rows.Run(active.count, up_row,
             [&](int i, int b, float product) { ffn.MultiplyByUp(active.places[i], b, product); });
  });
  ffn.tally.AddTo(share.part.counters);
}

template <typename D, int kBatch>
__global__ void __launch_bounds__(kRowThreads<kBatch>, kRowBlocks<D, kBatch>)
    MultiplyByUpKernel(const __grid_constant__ RowKernelCall call, BundleRow up) {
  JoinChain();
  __shared__ BlockNeurons active;
  const BlockShare share(call.shares);
  const NeuronSet& neurons = share.part.neurons;
  BlockFfn<kBatch> ffn{share.part, call.rows, call.activation, {}};
  active.Collect(
      share.begin, share.end, [](int64_t k) { return k; }, [&](int64_t k) { return ffn.HasValue(k); });
  WithRows<D, kBatch>(share.on_bus, neurons.hidden, call.sharing, [&](auto& rows) {
    const auto up_row = [&](int i) { return Bundle(neurons, active.places[i]) + up.offset; };
    rows.Start(active.count, up_row);
    rows.Fill(call.rows.x, call.rows.rows);
    rows.Run(active.count, up_row,
             [&](int i, int b, float product) { ffn.MultiplyByUp(active.places[i], b, product); });
  });
  ffn.tally.AddTo(share.part.counters);
}

// Grid: blocks for the pairs of rows and neurons, parts.
__global__ void ActivateGatesKernel(const __grid_constant__ FfnParts parts, GateSource gates, FfnRows rows,
                                    GateActivation activation) {
  JoinChain();
  const FfnPart& part = blockIdx.y == 1 ? parts.bus : parts.hot;
  const NeuronSet& neurons = part.neurons;
  const int64_t count = neurons.count;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  Tally tally;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows.rows * count;
       i += step) {
    const int64_t row = i / count, k = i % count;
    const bool wanted = Wanted(neurons, rows.masks, row, k);
    float value = 0;
    if (wanted) {
      const float product = gates.products[row * gates.stride + (gates.by_id ? Id(neurons, k) : k)];
      value = Activate(activation, product + Bias(neurons, k, gates.bias_offset));
    }
    part.values[i] = value;
    tally.computed += wanted;
    if (value == 0 || activation.gated) continue;
    ++tally.active;
    CountFiring(neurons, k);
  }
  tally.AddTo(part.counters);
}

// Token rows [first, first + batch) of `rows`.
FfnRows Part(const FfnRows& rows, const NeuronSet& neurons, int64_t first, int64_t batch) {
  return {rows.x + first * neurons.hidden, rows.masks + first * neuron::MaskWords(neurons.ffn), batch};
}

// Blocks of so many threads for both parts.
Shares RowShares(const FfnParts& parts, int64_t first, int threads, int blocks_each) {
  constexpr int64_t kBusThreads = 16 << 10;  // ask for more at once than the bus brings
  const int64_t warps = threads / kWarp;
  const auto blocks = [&](int64_t neurons, int64_t most) {
    return std::max(std::min(CeilDiv(neurons, warps), most), CeilDiv(neurons, BlockNeurons::kMost));
  };
  const int64_t all = int64_t{blocks_each} * Multiprocessors();
  const int64_t bus = blocks(parts.bus.neurons.count, kBusThreads / threads);
  const int64_t hot = blocks(parts.hot.neurons.count, std::max(all - bus, all / 2));
  return {FromRow(parts, first), static_cast<unsigned>(bus), static_cast<unsigned>(hot)};
}

template <typename D, int kBatch, typename Kernel, typename... Rest>
cudaError_t LaunchRows(Kernel kernel, const FfnParts& parts, const FfnRows& rows, int64_t first,
                       int64_t batch, const GateActivation& activation, cudaStream_t stream,
                       const Rest&... rest) {
  constexpr int kBlockThreads = kRowThreads<kBatch>;
  const NeuronSet& neurons = parts.hot.neurons;
  const int64_t shared = InputBytes<D, kBatch>(neurons.hidden);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return error;
  RowKernelCall call{RowShares(parts, first, kBlockThreads, kRowBlocks<D, kBatch>),
                     Part(rows, neurons, first, batch), activation, 1};
  if constexpr (kGathersTiles<D>) call.sharing = TileSharing<D>(neurons.hidden);
  return LaunchChained(kernel, call.shares.all_blocks(), kBlockThreads, shared, stream, call, rest...);
}

}  // namespace

cudaError_t GateRows(const FfnParts& parts, const BundleRow& gate, const BundleRow* up, const FfnRows& rows,
                     const GateActivation& activation, cudaStream_t stream) {
  const int64_t up_offset = up == nullptr ? 0 : up->offset;
  return ForEachBatch(gate.type, parts.hot.neurons.hidden, rows.rows,
                      [&]<typename D, int kBatch>(int64_t first, int64_t batch) {
                        return LaunchRows<D, kBatch>(GateRowsKernel<D, kBatch>, parts, rows, first, batch,
                                                     activation, stream, gate, up_offset);
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
  return ForEachBatch(up.type, parts.hot.neurons.hidden, rows.rows,
                      [&]<typename D, int kBatch>(int64_t first, int64_t batch) {
                        return LaunchRows<D, kBatch>(MultiplyByUpKernel<D, kBatch>, parts, rows, first, batch,
                                                     activation, stream, up);
                      });
}

}  // namespace isotherm::gpu_worker::cuda
