#include <algorithm>

#include "gpu_worker/kernels/activation.cuh"
#include "gpu_worker/kernels/block_share.cuh"
#include "gpu_worker/kernels/chain.cuh"
#include "gpu_worker/kernels/decode.cuh"
#include "gpu_worker/kernels/reduce.cuh"

namespace isotherm::gpu_worker::cuda {
namespace {

// A block adds up down rows of contiguous neurons, a partition, for kSliceThreads chunks of columns; each of
// its slices does so for its part of the neurons.
constexpr int kSliceThreads = 128;
constexpr int kSlices = 2;
constexpr int kDownThreads = kSlices * kSliceThreads;
constexpr int kMostSliceNeurons = 256;
constexpr int64_t kMostPartitionNeurons = kSlices * kMostSliceNeurons;

// A function of the neurons alone, never of the batch: a row's sums must not depend on what shares its pass.
// `usual` are enough to fill the device together with the columns.
int64_t Partitions(int64_t neurons, int64_t usual) {
  constexpr int64_t kLeast = 16;  // neurons of a partition
  const int64_t filling = std::clamp<int64_t>(neurons / kLeast, 1, usual);
  return std::max(filling, CeilDiv(neurons, kMostPartitionNeurons));
}
int64_t HotPartitions(int64_t neurons) { return Partitions(neurons, 64); }
int64_t BusPartitions(int64_t neurons) { return neurons == 0 ? 0 : Partitions(neurons, 32); }

// The active neurons of a slice in ascending order, with their values.
template <int kBatch>
struct ActiveNeurons {
  int32_t places[kMostSliceNeurons];
  float values[kMostSliceNeurons][kBatch];
  int warp_counts[kSliceThreads / kWarp];

  // By all threads of the block, each for its slice; `most` neurons has the largest slice. Returns how many
  // there are. Ends with a barrier.
  __device__ int Collect(const FfnPart& part, int64_t begin, int64_t end, int64_t most, int64_t batch) {
    const int thread = threadIdx.x % kSliceThreads, lane = thread % kWarp, warp = thread / kWarp;
    int found = 0;
    for (int64_t base = 0; base < most; base += kSliceThreads) {
      const int64_t k = begin + base + thread;
      float mine[kBatch];
      bool active = false;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        mine[b] = k < end && b < batch ? part.values[b * part.neurons.count + k] : 0.0f;
        active |= mine[b] != 0;
      }
      const unsigned ballot = __ballot_sync(kAllLanes, active);
      if (lane == 0) warp_counts[warp] = __popc(ballot);
      __syncthreads();
      int place = found + __popc(ballot & ((1u << lane) - 1));
#pragma unroll
      for (int w = 0; w < kSliceThreads / kWarp; ++w) {
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

template <typename D, int kBatch>
using DownSums = float[kBatch][D::kRuns][kRunColumns];

// sums += values * the chunk of the neurons' rows.
template <typename D, int kBatch>
__device__ void AddRows(const ActiveNeurons<kBatch>& active, int found, const NeuronSet& neurons,
                        int64_t offset, int64_t chunk, DownSums<D, kBatch>& sums) {
  constexpr int kAhead = kBatch == 1 ? 8 : 4;
  for (int i = 0; i < found; i += kAhead) {
    typename D::Raw raw[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (i + a < found)
        raw[a] = D::Load(Bundle(neurons, active.places[i + a]) + offset, neurons.hidden, chunk);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (i + a >= found) break;
      float weights[D::kRuns][kRunColumns];
      float scale = 1;
      if constexpr (HasOneScale<D>) {
        D::Integers(raw[a], weights);
        scale = D::Scale(raw[a]);
      } else {
        D::Decode(raw[a], chunk, weights);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const float value = active.values[i + a][b] * scale;
#pragma unroll
        for (int c = 0; c < D::kRuns * kRunColumns; ++c) {
          float& sum = sums[b][c / kRunColumns][c % kRunColumns];
          sum = fmaf(value, weights[c / kRunColumns][c % kRunColumns], sum);
        }
      }
    }
  }
}

// Adds the slices' sums in their order; the first slice gets them. By all threads of the block.
template <typename D, int kBatch>
__device__ void AddSlices(DownSums<D, kBatch>& sums) {
  constexpr int kCells = D::kRuns * kRunColumns;
  __shared__ float others[kSlices - 1][kCells][kSliceThreads];
  const int slice = threadIdx.x / kSliceThreads, thread = threadIdx.x % kSliceThreads;
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
#pragma unroll
    for (int c = 0; c < kCells; ++c) {
      if (slice > 0) others[slice - 1][c][thread] = sums[b][c / kRunColumns][c % kRunColumns];
    }
    __syncthreads();
    if (slice == 0) {
#pragma unroll
      for (int c = 0; c < kCells; ++c) {
        for (int other = 0; other < kSlices - 1; ++other) {
          sums[b][c / kRunColumns][c % kRunColumns] += others[other][c][thread];
        }
      }
    }
    __syncthreads();
  }
}

// Grid: partitions of both parts, pieces of kSliceThreads chunks of columns. partials [partitions, batch,
// hidden].
template <typename D, int kBatch>
__global__ void __launch_bounds__(kDownThreads, 2)
    DownKernel(const __grid_constant__ Shares shares, int64_t offset, int64_t batch, float* partials) {
  JoinChain();
  __shared__ ActiveNeurons<kBatch> slices[kSlices];
  const BlockShare share(shares);
  const NeuronSet& neurons = share.part.neurons;
  const int slice = threadIdx.x / kSliceThreads;
  const int64_t each = CeilDiv<int64_t>(share.end - share.begin, kSlices);
  const int64_t begin = share.begin + slice * each;
  ActiveNeurons<kBatch>& active = slices[slice];
  const int found = active.Collect(share.part, begin, min(begin + each, share.end), each, batch);

  const int64_t chunk = static_cast<int64_t>(blockIdx.y) * kSliceThreads + threadIdx.x % kSliceThreads;
  const bool exists = chunk < Chunks<D>(neurons.hidden);
  DownSums<D, kBatch> sums = {};
  if (exists) AddRows<D, kBatch>(active, found, neurons, offset, chunk, sums);
  AddSlices<D, kBatch>(sums);
  if (slice != 0 || !exists) return;
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
                  static_cast<unsigned>(CeilDiv<int64_t>(Chunks<D>(hidden), kSliceThreads)));
  const cudaError_t error = LaunchChained(DownKernel<D, kBatch>, grid, kDownThreads, 0, stream, shares,
                                          down.offset, batch, partials);
  if (error != cudaSuccess) return error;
  const int64_t cells = batch * hidden;
  return LaunchChained(SumPartials, Blocks(cells, kSumThreads), kSumThreads, 0, stream, partials,
                       int64_t{shares.all_blocks()}, cells, y);
}

}  // namespace

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
