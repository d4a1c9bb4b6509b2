#ifndef ISOTHERM_GPU_WORKER_KERNELS_QUANT_TILE_INPUT_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_QUANT_TILE_INPUT_CUH_

#include "gpu_worker/kernels/tile_step.cuh"

namespace isotherm::gpu_worker::cuda {

// How a chunk of quants becomes bytes: kProducts times four columns from ColumnA(p) and four from ColumnB(p)
// on. The weights are the bytes less kOffset, times the chunk's scale.
template <typename D>
struct TileBytes;

template <>
struct TileBytes<Decoder<WeightType::kQ8_0>> {
  using Raw = Decoder<WeightType::kQ8_0>::Raw;
  static constexpr int kProducts = 2, kOffset = 0;
  static __device__ int ColumnA(int p) { return 8 * p; }
  static __device__ int ColumnB(int p) { return 8 * p + 4; }
  static __device__ uint2 Take(const Raw& raw, int p) {
    return p == 0 ? uint2{raw.quants.x, raw.quants.y} : uint2{raw.quants.z, raw.quants.w};
  }
};

template <>
struct TileBytes<Decoder<WeightType::kQ4_0>> {
  using Raw = Decoder<WeightType::kQ4_0>::Raw;
  static constexpr int kProducts = 4, kOffset = 8;
  static __device__ int ColumnA(int p) { return 4 * p; }
  static __device__ int ColumnB(int p) { return 4 * p + 16; }
  static __device__ uint2 Take(const Raw& raw, int p) {
    const uint32_t words[] = {raw.nibbles.x, raw.nibbles.y, raw.nibbles.z, raw.nibbles.w};
    return {words[p] & 0x0f0f0f0f, words[p] >> 4 & 0x0f0f0f0f};
  }
};

// Quants: integers of 16 bits, in two terms of 8, with a scale for each chunk, as the row kernels of the CPU
// have them (row_kernels.h). Columns 2 t and 2 t + 1 are for lane t's chunk alone and zero for the other
// lanes', so that each lane gets the exact sum of its own chunk, and can apply its scales.
template <typename Quants, int kBatch>
class QuantTileInput {
 public:
  using Bytes4 = TileBytes<Quants>;
  static constexpr int kProducts = Bytes4::kProducts;
  static constexpr int kChunkTerms = kProducts;  // of 16 bytes: eight columns of both terms

  static int64_t Bytes(int64_t columns) {
    return kBatch * TileSteps<Quants>(columns) * kStepChunks * (kChunkTerms * sizeof(uint4) + sizeof(Chunk));
  }
  __device__ QuantTileInput(void* memory, int64_t columns)
      : columns_(static_cast<int>(columns)),
        steps_(TileSteps<Quants>(columns)),
        terms_(static_cast<uint2*>(memory)),
        chunks_(reinterpret_cast<Chunk*>(terms_ + 2 * kBatch * steps_ * kStepChunks * kChunkTerms)) {}
  __device__ int steps() const { return steps_; }

  // By all threads of the block; ends with a barrier. Rows past `batch` and columns past the last are zero.
  __device__ void Fill(const float* x, int64_t batch) const {
    // Pieces whose values are on their way at once: what the loads that Run has under way leave room for.
    constexpr int kAhead = kBatch == 1 ? kProducts / 2 : 1;
    constexpr int kRows = kBatch < 4 ? kBatch : 4;
    const int pieces = steps_ * kStepChunks * kProducts, threads = static_cast<int>(blockDim.x);
    // Whole warps stay together for the shuffles.
    for (int base = 0; base < pieces; base += kAhead * threads) {
      const int i = base + static_cast<int>(threadIdx.x);
#pragma unroll
      for (int first = 0; first < kBatch; first += kRows) {
        Piece values[kAhead][kRows];
#pragma unroll
        for (int v = 0; v < kAhead * kRows; ++v) {
          const int piece = i + v / kRows * threads, b = first + v % kRows;
          values[v / kRows][v % kRows] =
              LoadPiece(piece, piece < pieces && b < batch ? x + b * columns_ : nullptr);
        }
#pragma unroll
        for (int v = 0; v < kAhead * kRows; ++v) {
          const int piece = i + v / kRows * threads;
          if (piece - static_cast<int>(threadIdx.x) % kWarp >= pieces) break;
          PutPiece(piece, piece < pieces, values[v / kRows][v % kRows], first + v % kRows);
        }
      }
    }
    __syncthreads();
  }

  struct Sums {
    float chunk[2][kBatch] = {};
  };
  __device__ void MultiplyAdd(const typename Quants::Raw (&rows)[2], int step, Sums& sums) const {
    uint2 bytes[2][kProducts];
#pragma unroll
    for (int p = 0; p < kProducts; ++p) {
      bytes[0][p] = Bytes4::Take(rows[0], p);
      bytes[1][p] = Bytes4::Take(rows[1], p);
    }
    const float scales[] = {Quants::Scale(rows[0]), Quants::Scale(rows[1])};
    const bool has_terms = LaneRow() / 2 == LaneChunk();
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      int products[4] = {};
#pragma unroll
      for (int p = 0; p < kProducts; ++p) {
        uint2 terms = {0, 0};
        if (has_terms) terms = *Terms(b, step, p, LaneRow());
        Multiply({bytes[0][p].x, bytes[1][p].x, bytes[0][p].y, bytes[1][p].y}, terms.x, terms.y, products);
      }
      const Chunk chunk = chunks_[(b * steps_ + step) * kStepChunks + LaneChunk()];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int product = products[2 * r] * 256 + products[2 * r + 1] - chunk.offset;
        sums.chunk[r][b] = fmaf(scales[r] * chunk.scale, static_cast<float>(product), sums.chunk[r][b]);
      }
    }
  }

  __device__ void Store(const Sums& sums, float* parts) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        float sum = sums.chunk[r][b];
        sum += __shfl_xor_sync(kAllLanes, sum, 1);
        sum += __shfl_xor_sync(kAllLanes, sum, 2);
        if (LaneChunk() == 0) parts[(LaneRow() + 8 * r) * kBatch + b] = sum;
      }
    }
  }

 private:
  struct Chunk {
    float scale;
    int offset;  // kOffset times the sum of the integers
  };
  static constexpr float kMost = 127 * 256 + 127;
  static constexpr float kLeastMost = 0x1p-100f;
  // Added to a value of at most 2^22 it leaves the rounded integer in the sum's low bits.
  static constexpr float kRounder = 3 << 22;

  // What lane 2 t + term of a step's lanes with terms reads for a product.
  __device__ uint2* Terms(int b, int step, int p, int lane) const {
    return terms_ + ((b * steps_ + step) * kProducts + p) * 2 * kStepChunks + lane;
  }

  // Eight columns of a chunk: those of one product.
  struct Piece {
    float4 low, high;
  };
  // Zero without a row and past the last chunk; chunks are never in part.
  __device__ Piece LoadPiece(int i, const float* row) const {
    const int first = i / kProducts * kChunkColumns<Quants>, p = i % kProducts;
    if (row == nullptr || first >= columns_) return {{0, 0, 0, 0}, {0, 0, 0, 0}};
    return {*reinterpret_cast<const float4*>(row + first + Bytes4::ColumnA(p)),
            *reinterpret_cast<const float4*>(row + first + Bytes4::ColumnB(p))};
  }

  // The lanes that have a chunk agree on its scale.
  __device__ void PutPiece(int i, bool exists, const Piece& piece, int b) const {
    const int chunk = i / kProducts, p = i % kProducts;
    const float values[] = {piece.low.x,  piece.low.y,  piece.low.z,  piece.low.w,
                            piece.high.x, piece.high.y, piece.high.z, piece.high.w};
    float most = 0;
#pragma unroll
    for (int c = 0; c < 8; ++c) most = MaxKeepingNaN(most, fabsf(values[c]));
#pragma unroll
    for (int offset = 1; offset < kProducts; offset *= 2) {
      most = MaxKeepingNaN(most, __shfl_xor_sync(kAllLanes, most, offset));
    }
    // A chunk whose scale has no inverse becomes zeros. Infinities and NaN show in the scale, and with it in
    // every product with the chunk.
    const bool scales = most >= kLeastMost && most < INFINITY;
    const float inverse = scales ? kMost * __frcp_rn(most) : 0.0f;
    uint32_t high[2], low[2];
    int sum = 0;
#pragma unroll
    for (int four = 0; four < 2; ++four) {
      uint32_t bits[4], upper[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        bits[c] = __float_as_uint(fmaf(values[4 * four + c], inverse, kRounder));
        upper[c] = bits[c] + 128;  // the second byte is the upper one, rounded
      }
      high[four] =
          __byte_perm(__byte_perm(upper[0], upper[1], 0x51), __byte_perm(upper[2], upper[3], 0x51), 0x5410);
      low[four] =
          __byte_perm(__byte_perm(bits[0], bits[1], 0x40), __byte_perm(bits[2], bits[3], 0x40), 0x5410);
      sum += 256 * SumOfBytes(high[four]) + SumOfBytes(low[four]);
    }
#pragma unroll
    for (int offset = 1; offset < kProducts; offset *= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    if (!exists) return;
    const int step = chunk / kStepChunks, t = chunk % kStepChunks;
    *Terms(b, step, p, 2 * t) = {high[0], high[1]};
    *Terms(b, step, p, 2 * t + 1) = {low[0], low[1]};
    if (p != 0) return;
    chunks_[(b * steps_ + step) * kStepChunks + t] = {most < kLeastMost ? 0.0f : most * (1.0f / kMost),
                                                      Bytes4::kOffset * sum};
  }
  static __device__ int SumOfBytes(uint32_t word) { return __dp4a(static_cast<int>(word), 0x01010101, 0); }

  static __device__ void Multiply(const uint4& a, uint32_t b0, uint32_t b1, int (&sums)[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  }

  int columns_, steps_;
  uint2* terms_;   // [kBatch, steps, products, chunks, terms]
  Chunk* chunks_;  // [kBatch, steps, chunks]
};

template <int kBatch>
class TileInput<Decoder<WeightType::kQ8_0>, kBatch>
    : public QuantTileInput<Decoder<WeightType::kQ8_0>, kBatch> {
  using QuantTileInput<Decoder<WeightType::kQ8_0>, kBatch>::QuantTileInput;
};
template <int kBatch>
class TileInput<Decoder<WeightType::kQ4_0>, kBatch>
    : public QuantTileInput<Decoder<WeightType::kQ4_0>, kBatch> {
  using QuantTileInput<Decoder<WeightType::kQ4_0>, kBatch>::QuantTileInput;
};

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_QUANT_TILE_INPUT_CUH_
