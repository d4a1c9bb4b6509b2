#include <algorithm>

#include "gpu_worker/kernels/chain.cuh"
#include "gpu_worker/kernels/mat_mul.h"
#include "gpu_worker/kernels/tile_dots.cuh"
#include "gpu_worker/kernels/token_batches.cuh"

namespace isotherm::gpu_worker::cuda {
namespace {

constexpr int kMostThreads = 512;
constexpr int kLeastThreads = 128;

// Rows of weights that share what they read of x, where that is the larger part of the traffic; as many as
// registers allow.
template <typename D, int kBatch>
inline constexpr int kSharedRows = kBatch < 4      ? 1
                                   : D::kRuns == 1 ? 4
                                                   : 2;
// Of rows that a warp reads at once, so many together keep memory busy.
constexpr int kShortRows = 4;
// So many warps share a row of a matrix that has too few of them to keep memory busy.
constexpr int kSharingWarps = 4;

// A function of the matrices alone: a row's sum must not depend on the batch.
int SharingWarps(int64_t rows, int64_t chunks) {
  return rows * kSharingWarps * kWarp <= int64_t{kMostThreads} * Multiprocessors() &&
                 chunks >= kSharingWarps * kWarp
             ? kSharingWarps
             : 1;
}

// Matrices of one launch, one after another, and where their products go; y [batch, rows].
struct Factors {
  const uint8_t* weights[kMostProducts];
  int64_t stride[kMostProducts];
  int64_t rows[kMostProducts];
  const float* bias[kMostProducts];
  float* y[kMostProducts];
  int count = 0;

  // Groups of so many rows that no two matrices share.
  __host__ __device__ int64_t Groups(int m, int size) const { return CeilDiv<int64_t>(rows[m], size); }
  __host__ __device__ int64_t Groups(int size) const {
    int64_t groups = 0;
    for (int m = 0; m < count; ++m) groups += Groups(m, size);
    return groups;
  }
  // The matrix that has the group; makes the group's number that within the matrix.
  __device__ int Find(int size, int64_t& group) const {
    int m = 0;
    while (m < count - 1 && group >= Groups(m, size)) group -= Groups(m++, size);
    return m;
  }
};

// Has the second-level cache fetch the rows from `first` on of matrix m, at most `rows` of them and `left`
// bytes, a line a thread of `threads`; takes what it fetched from `left`. Weights depend on no other kernel:
// memory is busy with them while the kernels before this one finish, or wait for the CPU worker.
__device__ void FetchRows(const Factors& factors, int m, int64_t first, int64_t rows, int thread, int threads,
                          int64_t& left) {
  constexpr int64_t kLine = 128;
  const int64_t bytes = min(min(rows, factors.rows[m] - first) * factors.stride[m], left);
  const uint8_t* const begin = factors.weights[m] + first * factors.stride[m];
  for (int64_t offset = thread * kLine; offset < bytes; offset += threads * kLine) {
    FetchLine(begin + offset);
  }
  left -= bytes;
}

// What a block of so many fetches ahead: more would push out of the cache what was fetched before.
int64_t BlockAheadBytes(int64_t blocks) { return DeviceAttribute(cudaDevAttrL2CacheSize) / 3 * 2 / blocks; }

template <int kRows, int kBatch>
__device__ void StoreSums(const Factors& factors, int m, int64_t first, const float (&sums)[kRows][kBatch],
                          int64_t batch) {
  const int lane = threadIdx.x % kWarp;
  const int64_t outputs = factors.rows[m];
  const float* const bias = factors.bias[m];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (lane == b && b < batch && first + r < outputs) {
        factors.y[m][b * outputs + first + r] = bias == nullptr ? sums[r][b] : sums[r][b] + bias[first + r];
      }
    }
  }
}

// Adds up what the warps that share rows have, in their order; the first of them gets the sums. By all
// threads of the block.
template <int kRows, int kBatch>
__device__ void AddParts(const RowPart& part, float (&sums)[kRows][kBatch]) {
  __shared__ float parts[kMostThreads / kWarp][kRows][kBatch];
  const int warp = threadIdx.x / kWarp;
  __syncthreads();  // the last round's sums have been read
  if (threadIdx.x % kWarp == 0) {
#pragma unroll
    for (int i = 0; i < kRows * kBatch; ++i)
      parts[warp][i / kBatch][i % kBatch] = sums[i / kBatch][i % kBatch];
  }
  __syncthreads();
  if (part.part != 0) return;
  for (int other = 1; other < part.parts; ++other) {
#pragma unroll
    for (int i = 0; i < kRows * kBatch; ++i)
      sums[i / kBatch][i % kBatch] += parts[warp + other][i / kBatch][i % kBatch];
  }
}

// So many warps after one another share kRows rows, `sharing` divides a block's.
template <typename D, int kRows, int kBatch>
__global__ void __launch_bounds__(kMostThreads, kBatch == 1 ? 2 : 1)
    MatMulKernel(const __grid_constant__ Factors factors, int sharing, int64_t columns, int64_t ahead_bytes,
                 const float* x, int64_t batch) {
  extern __shared__ float4 memory[];
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp;
  const RowPart part{warp % sharing, sharing};
  const int64_t groups_each = warps / sharing;  // of the block, at a time
  const int64_t begin = blockIdx.x * groups_each, step = gridDim.x * groups_each;
  const int64_t groups = factors.Groups(kRows);
  LetNextStart();
  int64_t left = ahead_bytes / groups_each;
  for (int64_t group = begin + warp / sharing; group < groups && left > 0; group += step) {
    int64_t within = group;
    const int m = factors.Find(kRows, within);
    FetchRows(factors, m, within * kRows, kRows, static_cast<int>(threadIdx.x) % (sharing * kWarp),
              sharing * kWarp, left);
  }
  AwaitPrevious();
  StagedInput<D, kBatch> input(memory, columns);
  input.Fill(x, columns, batch);
  // The block's warps stay together for the barriers of AddParts.
  for (int64_t base = begin; base < groups; base += step) {
    int64_t group = base + warp / sharing;
    const bool mine = group < groups;
    const int m = mine ? factors.Find(kRows, group) : 0;
    const int64_t first = group * kRows;
    const uint8_t* rows[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      rows[r] = mine && first + r < factors.rows[m] ? factors.weights[m] + (first + r) * factors.stride[m]
                                                    : nullptr;
    }
    float sums[kRows][kBatch];
    DotRows<D>(rows, columns, input, sums, part);
    if (sharing > 1) AddParts(part, sums);
    if (mine && part.part == 0) StoreSums(factors, m, first, sums, batch);
  }
}

template <typename D, int kRows, int kBatch>
cudaError_t LaunchMatMul(const Factors& factors, int64_t columns, const float* x, int64_t batch,
                         cudaStream_t stream) {
  // Two blocks of sixteen warps keep a multiprocessor's loads in flight, and x is staged only so often.
  constexpr int64_t kBlocksEach = 2;
  const int64_t most_blocks = kBlocksEach * Multiprocessors();
  const auto kernel = MatMulKernel<D, kRows, kBatch>;
  const int64_t shared = StagedInput<D, kBatch>::Bytes(columns);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return error;
  const int sharing = SharingWarps(factors.Groups(1), Chunks<D>(columns));
  const int64_t warps = factors.Groups(kRows) * sharing;
  // A matrix of few rows is spread over more multiprocessors in smaller blocks.
  int threads = kMostThreads;
  while (sharing == 1 && threads > kLeastThreads &&
         CeilDiv<int64_t>(warps, threads / kWarp) < Multiprocessors()) {
    threads /= 2;
  }
  const int64_t blocks = std::min(most_blocks, CeilDiv<int64_t>(warps, threads / kWarp));
  return LaunchChained(kernel, static_cast<unsigned>(blocks), threads, shared, stream, factors, sharing,
                       columns, BlockAheadBytes(blocks), x, batch);
}

// All warps of a multiprocessor, in one block, as they read the same token rows: as many as registers allow
// for integers, which take longer to unpack than to read; else sixteen, which keep loads in flight and leave
// room for the next kernel to begin its own.
template <typename D, int kBatch>
inline constexpr int kTileThreads = kBatch == 1 && HasOneScale<D> ? 768 : 512;
template <int kBatch>
inline constexpr int kTileRegisters = kBatch == 1 ? 80 : 128;

// Blocks take tiles in turn. Weights depend on no other kernel, so that the first ones are on their way while
// the kernels before this one finish.
template <typename D, int kBatch>
__global__ void __maxnreg__(kTileRegisters<kBatch>)
    TileMatMulKernel(const __grid_constant__ Factors factors, int sharing, int64_t columns,
                     int64_t ahead_bytes, const float* x, int64_t batch) {
  extern __shared__ float4 memory[];
  TileInput<D, kBatch> input(memory, columns);
  using Dots = TileDots<D, kBatch, kTileThreads<D, kBatch>>;
  Dots dots(input, columns, sharing);
  const typename Dots::Tiles tiles{static_cast<int>(blockIdx.x) * dots.groups(),
                                   static_cast<int>(factors.Groups(kTileRows)),
                                   static_cast<int>(gridDim.x) * dots.groups()};
  const auto rows = [&](int64_t tile, int i) {
    const int m = factors.Find(kTileRows, tile);
    const int64_t row = min(tile * kTileRows + i, factors.rows[m] - 1);
    return factors.weights[m] + row * factors.stride[m];
  };
  LetNextStart();
  dots.Start(tiles, rows);
  int64_t left = ahead_bytes;
  for (int first = tiles.begin; first < tiles.end && left > 0; first += tiles.step) {
    for (int i = first; i < min(first + dots.groups(), tiles.end); ++i) {
      int64_t tile = i;
      const int m = factors.Find(kTileRows, tile);
      FetchRows(factors, m, tile * kTileRows, kTileRows, static_cast<int>(threadIdx.x),
                static_cast<int>(blockDim.x), left);
    }
  }
  AwaitPrevious();
  input.Fill(x, batch);
  dots.Run(tiles, rows, [&](int64_t tile, int i, int b, float sum) {
    const int m = factors.Find(kTileRows, tile);
    const int64_t row = tile * kTileRows + i;
    if (row >= factors.rows[m] || b >= batch) return;
    factors.y[m][b * factors.rows[m] + row] = factors.bias[m] == nullptr ? sum : sum + factors.bias[m][row];
  });
}

// Whether tiles of the matrices keep memory busy: not if they are few or narrow, as a low-rank predictor's
// are. A function of the matrices alone, as SharingWarps.
template <typename D>
bool FillsTiles(const Factors& factors, int64_t columns) {
  return factors.Groups(kTileRows) >= Multiprocessors() && Chunks<D>(columns) >= 2 * kWarp;
}

template <typename D, int kBatch>
cudaError_t LaunchTileMatMul(const Factors& factors, int64_t columns, const float* x, int64_t batch,
                             cudaStream_t stream) {
  const auto kernel = TileMatMulKernel<D, kBatch>;
  const int64_t shared = TileInput<D, kBatch>::Bytes(columns);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return error;
  const int sharing = TileSharing<D>(columns);
  constexpr int kThreads = kTileThreads<D, kBatch>;
  const int64_t groups = kThreads / kWarp / sharing;
  const int64_t blocks =
      std::min<int64_t>(Multiprocessors(), CeilDiv<int64_t>(factors.Groups(kTileRows), groups));
  return LaunchChained(kernel, static_cast<unsigned>(blocks), kThreads, shared, stream, factors, sharing,
                       columns, BlockAheadBytes(blocks), x, batch);
}

template <typename D>
__device__ void UnpackChunk(const uint8_t* row, int64_t columns, int64_t chunk, float scale, bool accumulate,
                            float* out) {
  float weights[D::kRuns][kRunColumns];
  D::Decode(D::Load(row, columns, chunk), chunk, weights);
#pragma unroll
  for (int run = 0; run < D::kRuns; ++run) {
    const int64_t column = D::Column(chunk, run);
#pragma unroll
    for (int i = 0; i < kRunColumns; ++i) {
      if (column + i < columns) {
        out[column + i] = fmaf(scale, weights[run][i], accumulate ? out[column + i] : 0.0f);
      }
    }
  }
}

// Without indices row i is the matrix's row offset + i.
template <typename D>
__global__ void UnpackKernel(const uint8_t* __restrict__ weights, int64_t stride, int64_t columns,
                             EmbedRows rows, float* out) {
  JoinChain();
  const int64_t chunks = Chunks<D>(columns);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows.count * chunks;
       i += step) {
    const int64_t row = rows.offset + (rows.indices == nullptr ? i / chunks : rows.indices[i / chunks]);
    UnpackChunk<D>(weights + row * stride, columns, i % chunks, rows.scale, rows.accumulate,
                   out + i / chunks * columns);
  }
}

Factors Collect(const Product* products, int count, int64_t first) {
  Factors factors;
  for (; factors.count < count; ++factors.count) {
    const Product& product = products[factors.count];
    const int m = factors.count;
    factors.weights[m] = product.weight.data;
    factors.stride[m] = product.weight.stride_bytes;
    factors.rows[m] = product.weight.rows;
    factors.bias[m] = product.bias;
    factors.y[m] = product.y + first * product.weight.rows;
  }
  return factors;
}

}  // namespace

cudaError_t MatMul(const Product* products, int count, const float* x, int64_t rows, cudaStream_t stream) {
  if (count < 1 || count > kMostProducts) return cudaErrorInvalidValue;
  const kernels::WeightMatrix& weight = products[0].weight;
  const int64_t columns = weight.columns;
  return ForEachBatch(weight.type, columns, rows, [&]<typename D, int kBatch>(int64_t first, int64_t batch) {
    const Factors factors = Collect(products, count, first);
    const float* const inputs = x + first * columns;
    if constexpr (HasTiles<D>) {
      if (FillsTiles<D>(factors, columns))
        return LaunchTileMatMul<D, kBatch>(factors, columns, inputs, batch, stream);
    }
    if constexpr (kBatch == 1) {
      if (Chunks<D>(columns) <= kWarp)
        return LaunchMatMul<D, kShortRows, 1>(factors, columns, inputs, batch, stream);
    }
    return LaunchMatMul<D, kSharedRows<D, kBatch>, kBatch>(factors, columns, inputs, batch, stream);
  });
}

cudaError_t Unpack(const kernels::WeightMatrix& weight, int64_t first, int64_t count, float* out,
                   cudaStream_t stream) {
  return Embed(weight, {.offset = first, .count = count}, out, stream);
}

cudaError_t Embed(const kernels::WeightMatrix& weight, const EmbedRows& rows, float* out,
                  cudaStream_t stream) {
  constexpr int kUnpackThreads = 256;
  return DispatchWeightType(weight.type, [&]<WeightType kType>() {
    using D = Decoder<kType>;
    const unsigned blocks = Blocks(rows.count * Chunks<D>(weight.columns), kUnpackThreads);
    return LaunchChained(UnpackKernel<D>, blocks, kUnpackThreads, 0, stream, weight.data, weight.stride_bytes,
                         weight.columns, rows, out);
  });
}

}  // namespace isotherm::gpu_worker::cuda
