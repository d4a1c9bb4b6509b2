#ifndef ISOTHERM_GPU_WORKER_KERNELS_F16_TILE_INPUT_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_F16_TILE_INPUT_CUH_

#include <cuda_fp16.h>

#include "gpu_worker/kernels/tile_step.cuh"

namespace isotherm::gpu_worker::cuda {

// Of values >= 0 in F32: the exponent as it is stored, at least `least`, or 255 for what is not finite.
__device__ inline int StoredExponent(float value, int least) {
  return max(static_cast<int>(__float_as_uint(value) >> 23), least);
}

// F16 weights: two F16 terms of 11 bits each, scaled by a power of two a token row so that its largest value
// is just within F16's range. Columns 2 b and 2 b + 1 are of token row b; sums stay in F32 accumulators.
template <int kBatch>
class TileInput<Decoder<WeightType::kF16>, kBatch> {
 public:
  using D = Decoder<WeightType::kF16>;
  static constexpr int kChunkTerms = 2;  // of 16 bytes
  static constexpr int kGroups = CeilDiv(kBatch, 4);

  static int64_t Bytes(int64_t columns) {
    return kBatch * TileSteps<D>(columns) * kStepChunks * kChunkTerms * sizeof(uint4);
  }
  __device__ TileInput(void* memory, int64_t columns)
      : columns_(static_cast<int>(columns)),
        steps_(TileSteps<D>(columns)),
        terms_(static_cast<uint4*>(memory)) {}
  __device__ int steps() const { return steps_; }

  // By all threads of the block; ends with a barrier. Rows past `batch` and columns past the last are zero.
  __device__ void Fill(const float* x, int64_t batch) const {
    __shared__ float most[kBatch][kMostWarps];
    const int warps = static_cast<int>(blockDim.x) / kWarp;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      float mine = 0;
      const int step = 4 * static_cast<int>(blockDim.x);
      for (int first = 4 * static_cast<int>(threadIdx.x); b < batch && first < columns_;
           first += kAhead * step) {
        float4 fours[kAhead];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) fours[a] = FourColumns(x + b * columns_, first + a * step, columns_);
#pragma unroll
        for (int a = 0; a < kAhead; ++a) mine = MaxKeepingNaN(mine, LargestOf(fours[a]));
      }
      mine = WarpMax(mine);
      if (threadIdx.x % kWarp == 0) most[b][threadIdx.x / kWarp] = mine;
    }
    __syncthreads();
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      float row_most = most[b][0];
      for (int w = 1; w < warps; ++w) row_most = MaxKeepingNaN(row_most, most[b][w]);
      const int exponent = StoredExponent(row_most, kLeast);
      if (threadIdx.x == 0) Downscales()[b] = Downscale(exponent);
      FillRow(b < batch && exponent != kNotFinite ? x + b * columns_ : nullptr, Upscale(exponent), b);
    }
    __syncthreads();
  }

  struct Sums {
    float tile[kGroups][4] = {};
  };
  __device__ void MultiplyAdd(const typename D::Raw (&rows)[2], int step, Sums& sums) const {
    const int b = LaneRow() / 2, term = LaneRow() % 2;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      uint4 terms = {0, 0, 0, 0};
      if (4 * group + b < kBatch) terms = *Terms(4 * group + b, step, LaneChunk(), term);
      Multiply({rows[0].x, rows[1].x, rows[0].y, rows[1].y}, terms.x, terms.y, sums.tile[group]);
      Multiply({rows[0].z, rows[1].z, rows[0].w, rows[1].w}, terms.z, terms.w, sums.tile[group]);
    }
  }

  __device__ void Store(const Sums& sums, float* parts) const {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int b = 4 * group + static_cast<int>(threadIdx.x) % 4;
      if (b >= kBatch) continue;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        parts[(LaneRow() + 8 * r) * kBatch + b] =
            (sums.tile[group][2 * r] + sums.tile[group][2 * r + 1]) * Downscales()[b];
      }
    }
  }

 private:
  // Exponents as F32 stores them. The largest value comes to lie in [2^14, 2^15), and both scales are normal.
  static constexpr int kBias = 127, kLeast = 15, kNotFinite = 255, kMostWarps = 16;
  static constexpr int kAhead = 4;  // loads of a thread on their way at once
  static __device__ float LargestOf(const float4& four) {
    return MaxKeepingNaN(MaxKeepingNaN(fabsf(four.x), fabsf(four.y)),
                         MaxKeepingNaN(fabsf(four.z), fabsf(four.w)));
  }
  static __device__ float Upscale(int exponent) { return __uint_as_float((2 * kBias + 14 - exponent) << 23); }
  // Infinities and NaN show in every product with the row.
  static __device__ float Downscale(int exponent) {
    return __uint_as_float(exponent == kNotFinite ? 0x7fc00000 : (exponent - 14) << 23);
  }
  static __device__ float* Downscales() {
    __shared__ float downscales[kBatch];
    return downscales;
  }

  __device__ uint4* Terms(int b, int step, int chunk, int term) const {
    return terms_ + ((b * steps_ + step) * kStepChunks + chunk) * kChunkTerms + term;
  }

  __device__ void FillRow(const float* row, float upscale, int b) const {
    for (int chunk = static_cast<int>(threadIdx.x); chunk < steps_ * kStepChunks; chunk += blockDim.x) {
      float values[8] = {};
      if (row != nullptr) {
        const float4 low = FourColumns(row, 8 * chunk, columns_),
                     high = FourColumns(row, 8 * chunk + 4, columns_);
        const float eight[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int c = 0; c < 8; ++c) values[c] = eight[c] * upscale;
      }
      uint32_t first[4], second[4];
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const float2 two = {values[2 * pair], values[2 * pair + 1]};
        const __half2 rounded = __float22half2_rn(two);
        const float2 kept = __half22float2(rounded);
        first[pair] = Bits(rounded);
        second[pair] = Bits(__float22half2_rn({two.x - kept.x, two.y - kept.y}));
      }
      uint4* const to = Terms(b, chunk / kStepChunks, chunk % kStepChunks, 0);
      to[0] = {first[0], first[1], first[2], first[3]};
      to[1] = {second[0], second[1], second[2], second[3]};
    }
  }

  static __device__ uint32_t Bits(__half2 halves) { return *reinterpret_cast<const uint32_t*>(&halves); }

  static __device__ void Multiply(const uint4& a, uint32_t b0, uint32_t b1, float (&sums)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  }

  int columns_, steps_;
  uint4* terms_;  // [kBatch, steps, chunks, terms]
};

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_F16_TILE_INPUT_CUH_
