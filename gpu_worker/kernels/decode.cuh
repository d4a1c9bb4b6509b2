#ifndef ISOTHERM_GPU_WORKER_KERNELS_DECODE_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_DECODE_CUH_

#include <cuda_fp16.h>

#include <cstdint>

#include "common/kernels/packed_row.h"

// Decoders of packed rows (common/kernels/packed_row.h), one for each weight type. A row is read in chunks,
// one a lane: kRuns runs of eight consecutive columns each. Loading is apart from decoding, so that a kernel
// can have several loads in flight before it waits for the first.
//   Load(row, columns, chunk)     the bytes of a chunk; chunks past the last column read the row's zero
//   padding Decode(raw, chunk, weights)   its weights as F32, with one rounding at most Column(chunk, run)
//   the first column of a run
//
// Long because kernels take their decoder at compile time, and every one of them needs all.
namespace isotherm::gpu_worker::cuda {

using kernels::WeightType;

inline constexpr int kRunColumns = 8;

// A decoder with kOneScale instead gives the integers of a chunk, Integers(raw, integers), which Scale(raw)
// times are the weights: dot products then multiply with it once a chunk.
template <WeightType kType>
struct Decoder;
template <typename D>
concept HasOneScale = requires {
  D::kOneScale;
};

template <typename T>
__device__ inline T LoadOnce(const void* from) {
  return __ldg(reinterpret_cast<const T*>(from));
}

__device__ inline float HalfBits(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// Small integers become floats as the low bits of 2^23's mantissa, from which 2^23 is then subtracted: exact,
// and without a conversion, which devices make at a quarter of the speed of an addition.
inline constexpr float kTwoTo23 = 8388608.0f;
inline constexpr uint32_t kTwoTo23Bits = 0x4b000000;

__device__ inline float SignedByte(uint32_t word, int index) {
  const uint32_t bits = __byte_perm(word ^ 0x80808080u, kTwoTo23Bits, 0x7440 | index);
  return __uint_as_float(bits) - (kTwoTo23 + 128);
}

// The low nibble, less 8.
__device__ inline float NibbleLess8(uint32_t word) {
  return __uint_as_float((word & 15) | kTwoTo23Bits) - (kTwoTo23 + 8);
}

template <int kRuns>
__device__ inline void Multiply(float scale, float (&weights)[kRuns][kRunColumns]) {
#pragma unroll
  for (int i = 0; i < kRuns * kRunColumns; ++i) weights[i / kRunColumns][i % kRunColumns] *= scale;
}

// Columns in one chunk of a type, and chunks that cover a row.
template <typename D>
inline constexpr int kChunkColumns = D::kRuns* kRunColumns;
template <typename D>
__host__ __device__ inline int64_t Chunks(int64_t columns) {
  return (columns + kChunkColumns<D> - 1) / kChunkColumns<D>;
}

template <>
struct Decoder<WeightType::kF32> {
  static constexpr int kRuns = 1;
  struct Raw {
    float4 low, high;
  };
  static __device__ int64_t Column(int64_t chunk, int) { return chunk * kRunColumns; }
  static __device__ Raw Load(const uint8_t* row, int64_t, int64_t chunk) {
    return {LoadOnce<float4>(row + 32 * chunk), LoadOnce<float4>(row + 32 * chunk + 16)};
  }
  static __device__ void Decode(const Raw& raw, int64_t, float (&weights)[kRuns][kRunColumns]) {
    const float values[] = {raw.low.x,  raw.low.y,  raw.low.z,  raw.low.w,
                            raw.high.x, raw.high.y, raw.high.z, raw.high.w};
#pragma unroll
    for (int i = 0; i < kRunColumns; ++i) weights[0][i] = values[i];
  }
};

template <>
struct Decoder<WeightType::kF16> {
  static constexpr int kRuns = 1;
  using Raw = uint4;
  static __device__ int64_t Column(int64_t chunk, int) { return chunk * kRunColumns; }
  static __device__ Raw Load(const uint8_t* row, int64_t, int64_t chunk) {
    return LoadOnce<uint4>(row + 16 * chunk);
  }
  static __device__ void Decode(const Raw& raw, int64_t, float (&weights)[kRuns][kRunColumns]) {
    const uint32_t words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      weights[0][2 * i] = HalfBits(words[i] & 0xffff);
      weights[0][2 * i + 1] = HalfBits(words[i] >> 16);
    }
  }
};

template <>
struct Decoder<WeightType::kBF16> {
  static constexpr int kRuns = 1;
  using Raw = uint4;
  static __device__ int64_t Column(int64_t chunk, int) { return chunk * kRunColumns; }
  static __device__ Raw Load(const uint8_t* row, int64_t, int64_t chunk) {
    return LoadOnce<uint4>(row + 16 * chunk);
  }
  static __device__ void Decode(const Raw& raw, int64_t, float (&weights)[kRuns][kRunColumns]) {
    const uint32_t words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      weights[0][2 * i] = __uint_as_float(words[i] << 16);
      weights[0][2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
};

// Half a block: sixteen quants.
template <>
struct Decoder<WeightType::kQ8_0> {
  static constexpr int kRuns = 2;
  struct Raw {
    uint4 quants;
    unsigned short scale;
  };
  static __device__ int64_t Column(int64_t chunk, int run) { return 16 * chunk + kRunColumns * run; }
  static __device__ Raw Load(const uint8_t* row, int64_t columns, int64_t chunk) {
    return {LoadOnce<uint4>(row + 16 * chunk), LoadOnce<unsigned short>(row + columns + chunk / 2 * 2)};
  }
  static constexpr bool kOneScale = true;
  static __device__ float Scale(const Raw& raw) { return HalfBits(raw.scale); }
  static __device__ void Integers(const Raw& raw, float (&integers)[kRuns][kRunColumns]) {
    const uint32_t words[] = {raw.quants.x, raw.quants.y, raw.quants.z, raw.quants.w};
#pragma unroll
    for (int i = 0; i < 16; ++i) integers[i / 8][i % 8] = SignedByte(words[i / 4], i % 4);
  }
  static __device__ void Decode(const Raw& raw, int64_t, float (&weights)[kRuns][kRunColumns]) {
    Integers(raw, weights);
    Multiply(Scale(raw), weights);
  }
};

// A block: its bytes hold columns 0..15 in the low nibbles and 16..31 in the high ones.
template <>
struct Decoder<WeightType::kQ4_0> {
  static constexpr int kRuns = 4;
  struct Raw {
    uint4 nibbles;
    unsigned short scale;
  };
  static __device__ int64_t Column(int64_t chunk, int run) { return 32 * chunk + kRunColumns * run; }
  static __device__ Raw Load(const uint8_t* row, int64_t columns, int64_t chunk) {
    return {LoadOnce<uint4>(row + 16 * chunk), LoadOnce<unsigned short>(row + columns / 2 + 2 * chunk)};
  }
  static constexpr bool kOneScale = true;
  static __device__ float Scale(const Raw& raw) { return HalfBits(raw.scale); }
  static __device__ void Integers(const Raw& raw, float (&integers)[kRuns][kRunColumns]) {
    const uint32_t words[] = {raw.nibbles.x, raw.nibbles.y, raw.nibbles.z, raw.nibbles.w};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const uint32_t pair = words[i / 4] >> (8 * (i % 4));
      integers[i / 8][i % 8] = NibbleLess8(pair);
      integers[2 + i / 8][i % 8] = NibbleLess8(pair >> 4);
    }
  }
  static __device__ void Decode(const Raw& raw, int64_t, float (&weights)[kRuns][kRunColumns]) {
    Integers(raw, weights);
    Multiply(Scale(raw), weights);
  }
};

// A block of 32 as files store it: F16 scale, F16 minimum or none (then integers count from -16), four bytes
// of fifth bits or none, nibbles as in Q4_0. Blocks are aligned to two bytes only.
template <bool kMinimum, bool kFifthBits>
struct BlockDecoder {
  static constexpr int kRuns = 4;
  static constexpr int kFifthsAt = kMinimum ? 2 : 1;  // in units of two bytes
  static constexpr int kNibblesAt = kFifthsAt + (kFifthBits ? 2 : 0);
  static constexpr int kBlockUnits = kNibblesAt + 8;
  struct Raw {
    unsigned short units[kBlockUnits];
  };
  static __device__ int64_t Column(int64_t chunk, int run) { return 32 * chunk + kRunColumns * run; }
  static __device__ Raw Load(const uint8_t* row, int64_t, int64_t chunk) {
    Raw raw;
#pragma unroll
    for (int i = 0; i < kBlockUnits; ++i) {
      raw.units[i] = LoadOnce<unsigned short>(row + 2 * (kBlockUnits * chunk + i));
    }
    return raw;
  }
  static __device__ void Decode(const Raw& raw, int64_t, float (&weights)[kRuns][kRunColumns]) {
    const float scale = HalfBits(raw.units[0]);
    const float offset = kMinimum ? HalfBits(raw.units[1]) : -16 * scale;
    const uint32_t fifths =
        kFifthBits ? raw.units[kFifthsAt] | static_cast<uint32_t>(raw.units[kFifthsAt + 1]) << 16 : 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const uint32_t pair = raw.units[kNibblesAt + i / 2] >> (8 * (i % 2));
      const uint32_t low = (pair & 15) | (fifths >> i & 1) << 4;
      const uint32_t high = (pair >> 4 & 15) | (fifths >> (16 + i) & 1) << 4;
      weights[i / 8][i % 8] = fmaf(static_cast<float>(low), scale, offset);
      weights[2 + i / 8][i % 8] = fmaf(static_cast<float>(high), scale, offset);
    }
  }
};

template <>
struct Decoder<WeightType::kQ4_1> : BlockDecoder<true, false> {};
template <>
struct Decoder<WeightType::kQ5_0> : BlockDecoder<false, true> {};
template <>
struct Decoder<WeightType::kQ5_1> : BlockDecoder<true, true> {};

// An eighth of a superblock: sixteen bytes hold sixteen columns in the low nibbles and, 32 columns on,
// sixteen more in the high ones. Scales, minima and fifth bits as in common/kernels/unpack-inl.h.
template <bool kFifthBits>
struct SuperblockDecoder {
  static constexpr int kRuns = 4;
  static constexpr int kNibblesAt = kFifthBits ? 48 : 16;
  static constexpr int kBytes = kNibblesAt + 128;
  struct Raw {
    uint4 nibbles;
    uint4 header;  // F16 scale and F16 scale of minima, twelve bytes of 6-bit scales and minima
    uint4 fifths;
  };
  static __device__ int64_t Column(int64_t chunk, int run) {
    return 64 * (chunk / 2) + 16 * (chunk % 2) + kRunColumns * (run % 2) + 32 * (run / 2);
  }
  static __device__ Raw Load(const uint8_t* row, int64_t, int64_t chunk) {
    const uint8_t* superblock = row + kBytes * (chunk / 8);
    return {LoadOnce<uint4>(superblock + kNibblesAt + 16 * (chunk % 8)), LoadOnce<uint4>(superblock),
            kFifthBits ? LoadOnce<uint4>(superblock + 16 + 16 * (chunk % 2)) : uint4{}};
  }
  static __device__ void Decode(const Raw& raw, int64_t chunk, float (&weights)[kRuns][kRunColumns]) {
    const uint32_t words[] = {raw.nibbles.x, raw.nibbles.y, raw.nibbles.z, raw.nibbles.w};
    const uint32_t fifths[] = {raw.fifths.x, raw.fifths.y, raw.fifths.z, raw.fifths.w};
    const int group = static_cast<int>(chunk % 8 / 2);
    const bool late = group >= 2;  // sub-blocks 4..7
    const uint32_t scales =
        late ? (raw.header.w & 0x0f0f0f0f) | (raw.header.y >> 2 & 0x30303030) : raw.header.y & 0x3f3f3f3f;
    const uint32_t minima = late ? (raw.header.w >> 4 & 0x0f0f0f0f) | (raw.header.z >> 2 & 0x30303030)
                                 : raw.header.z & 0x3f3f3f3f;
    const int shift = 16 * (group % 2);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale =
          HalfBits(raw.header.x & 0xffff) * static_cast<float>(scales >> (shift + 8 * half) & 0xff);
      const float minimum =
          HalfBits(raw.header.x >> 16) * static_cast<float>(minima >> (shift + 8 * half) & 0xff);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const uint32_t nibble = words[i / 4] >> (8 * (i % 4) + 4 * half) & 15;
        const uint32_t fifth = fifths[i / 4] >> (8 * (i % 4) + 2 * group + half) & 1;
        weights[2 * half + i / 8][i % 8] = fmaf(static_cast<float>(nibble | fifth << 4), scale, -minimum);
      }
    }
  }
};

template <>
struct Decoder<WeightType::kQ4_K> : SuperblockDecoder<false> {};
template <>
struct Decoder<WeightType::kQ5_K> : SuperblockDecoder<true> {};

// Eight columns of one of the superblock's eight quarters of a half; superblocks of 210 bytes are aligned to
// two only.
template <>
struct Decoder<WeightType::kQ6_K> {
  static constexpr int kRuns = 1;
  struct Raw {
    unsigned short low[4], high[4];
    int8_t scale;
    unsigned short superblock_scale;
  };
  static __device__ int64_t Column(int64_t chunk, int) { return chunk * kRunColumns; }
  static __device__ Raw Load(const uint8_t* row, int64_t, int64_t chunk) {
    const uint8_t* superblock = row + 210 * (chunk / 32);
    const int64_t half = chunk % 32 / 16, quarter = chunk % 16 / 4, first = chunk % 4 * 8;
    const uint8_t* low = superblock + 64 * half + 32 * (quarter % 2) + first;
    const uint8_t* high = superblock + 128 + 32 * half + first;
    Raw raw;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      raw.low[i] = LoadOnce<unsigned short>(low + 2 * i);
      raw.high[i] = LoadOnce<unsigned short>(high + 2 * i);
    }
    raw.scale = LoadOnce<signed char>(superblock + 192 + 8 * half + 2 * quarter + first / 16);
    raw.superblock_scale = LoadOnce<unsigned short>(superblock + 208);
    return raw;
  }
  static __device__ void Decode(const Raw& raw, int64_t chunk, float (&weights)[kRuns][kRunColumns]) {
    const int quarter = static_cast<int>(chunk % 16 / 4);
    const float scale = HalfBits(raw.superblock_scale) * static_cast<float>(raw.scale);
#pragma unroll
    for (int i = 0; i < kRunColumns; ++i) {
      const int low = raw.low[i / 2] >> (8 * (i % 2) + 4 * (quarter / 2)) & 15;
      const int high = raw.high[i / 2] >> (8 * (i % 2) + 2 * quarter) & 3;
      weights[0][i] = static_cast<float>((low | high << 4) - 32) * scale;
    }
  }
};

// Calls function.template operator()<kType>() for the type.
template <typename Function>
inline auto DispatchWeightType(WeightType type, const Function& function) {
  switch (type) {
    case WeightType::kF32:
      break;
    case WeightType::kF16:
      return function.template operator()<WeightType::kF16>();
    case WeightType::kBF16:
      return function.template operator()<WeightType::kBF16>();
    case WeightType::kQ8_0:
      return function.template operator()<WeightType::kQ8_0>();
    case WeightType::kQ4_0:
      return function.template operator()<WeightType::kQ4_0>();
    case WeightType::kQ4_K:
      return function.template operator()<WeightType::kQ4_K>();
    case WeightType::kQ6_K:
      return function.template operator()<WeightType::kQ6_K>();
    case WeightType::kQ4_1:
      return function.template operator()<WeightType::kQ4_1>();
    case WeightType::kQ5_0:
      return function.template operator()<WeightType::kQ5_0>();
    case WeightType::kQ5_1:
      return function.template operator()<WeightType::kQ5_1>();
    case WeightType::kQ5_K:
      return function.template operator()<WeightType::kQ5_K>();
  }
  return function.template operator()<WeightType::kF32>();
}

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_DECODE_CUH_
