// Blocks as files store them, unpacked to F32 weights.

#if defined(ISOTHERM_COMMON_KERNELS_UNPACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_UNPACK_INL_H_
#undef ISOTHERM_COMMON_KERNELS_UNPACK_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_UNPACK_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DI32 = hn::RebindToSigned<DF>;
using DU32 = hn::RebindToUnsigned<DF>;
using DI8 = hn::Rebind<int8_t, DF>;
using DU8 = hn::Rebind<uint8_t, DF>;
using DU16 = hn::Rebind<uint16_t, DF>;
using DF16 = hn::Rebind<hwy::float16_t, DF>;
using VF = hn::Vec<DF>;

HWY_INLINE constexpr int64_t LanesF() { return HWY_LANES(float); }

inline constexpr int64_t kBlockColumns = 32;
inline constexpr int64_t kSuperblockColumns = 256;

HWY_INLINE VF LoadHalf(const uint8_t* from) {
  return hn::PromoteTo(DF(), hn::LoadU(DF16(), reinterpret_cast<const hwy::float16_t*>(from)));
}

HWY_INLINE float LoadOneHalf(const uint8_t* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

// out = integer * scale + offset.
HWY_INLINE void StoreAffine(hn::Vec<DU32> integers, VF scale, VF offset, float* out) {
  hn::StoreU(hn::MulAdd(hn::ConvertTo(DF(), hn::BitCast(DI32(), integers)), scale, offset), DF(), out);
}

// 16 in each lane whose bit of `bits` is set.
HWY_INLINE hn::Vec<DU32> FifthBits(uint32_t bits) {
  const DU32 d;
  return hn::And(hn::ShiftLeft<4>(hn::Shr(hn::Set(d, bits), hn::Iota(d, 0))), hn::Set(d, 16));
}

// Block of 32: columns 0..15 in the low nibbles of 16 bytes, 16..31 in the high ones; the fifth bit of column
// i is bit i of `fifth_bits`.
HWY_INLINE void UnpackBlock32(const uint8_t* nibbles, uint32_t fifth_bits, float scale, float offset,
                              float* out) {
  const DU32 d;
  const auto scales = hn::Set(DF(), scale);
  const auto offsets = hn::Set(DF(), offset);
  for (int64_t i = 0; i < kBlockColumns / 2; i += LanesF()) {
    const auto pairs = hn::PromoteTo(d, hn::LoadU(DU8(), nibbles + i));
    const auto low = hn::Or(hn::And(pairs, hn::Set(d, 15)), FifthBits(fifth_bits >> i));
    const auto high = hn::Or(hn::ShiftRight<4>(pairs), FifthBits(fifth_bits >> (kBlockColumns / 2 + i)));
    StoreAffine(low, scales, offsets, out + i);
    StoreAffine(high, scales, offsets, out + kBlockColumns / 2 + i);
  }
}

HWY_INLINE uint32_t LoadWord(const uint8_t* from) {
  uint32_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// Q4_1 and Q5_1: F16 scale, F16 minimum, which is added; the five-bit types have four bytes of fifth bits
// before their nibbles. Q5_0 has no minimum and counts from -16.
inline constexpr int64_t kQ41Bytes = 20;
HWY_INLINE void UnpackQ41(const uint8_t* block, float* out) {
  UnpackBlock32(block + 4, 0, LoadOneHalf(block), LoadOneHalf(block + 2), out);
}

inline constexpr int64_t kQ50Bytes = 22;
HWY_INLINE void UnpackQ50(const uint8_t* block, float* out) {
  const float scale = LoadOneHalf(block);
  UnpackBlock32(block + 6, LoadWord(block + 2), scale, -16 * scale, out);
}

inline constexpr int64_t kQ51Bytes = 24;
HWY_INLINE void UnpackQ51(const uint8_t* block, float* out) {
  UnpackBlock32(block + 8, LoadWord(block + 4), LoadOneHalf(block), LoadOneHalf(block + 2), out);
}

// to[i] = bytes[i] * factor for the 8 or 16 small integers that scale a superblock's parts.
template <size_t kCount, class T>
HWY_INLINE void ScaleBytes(const T* bytes, float factor, float* to) {
  const hn::CappedTag<float, kCount> d;
  const hn::RebindToSigned<decltype(d)> di;
  for (size_t i = 0; i < kCount; i += hn::Lanes(d)) {
    const auto integers = hn::PromoteTo(di, hn::LoadU(hn::Rebind<T, decltype(d)>(), bytes + i));
    hn::StoreU(hn::Mul(hn::ConvertTo(d, integers), hn::Set(d, factor)), d, to + i);
  }
}

// What Q4_K and Q5_K begin with: F16 scale and F16 scale of minima, then eight 6-bit scales and eight 6-bit
// minima in 12 bytes. The first four scales and minima take the low six bits of a byte each; the others have
// their low four bits in the last four bytes and their high two on top of the first eight.
struct ScalesAndMinima {
  explicit HWY_INLINE ScalesAndMinima(const uint8_t* block) {
    const uint32_t first = LoadWord(block + 4), second = LoadWord(block + 8), third = LoadWord(block + 12);
    const uint32_t scales[2] = {first & 0x3f3f3f3f, (third & 0x0f0f0f0f) | (first >> 2 & 0x30303030)};
    const uint32_t minima[2] = {second & 0x3f3f3f3f, (third >> 4 & 0x0f0f0f0f) | (second >> 2 & 0x30303030)};
    ScaleBytes<8>(reinterpret_cast<const uint8_t*>(scales), LoadOneHalf(block), scale);
    ScaleBytes<8>(reinterpret_cast<const uint8_t*>(minima), -LoadOneHalf(block + 2), offset);
  }

  float scale[8];
  float offset[8];  // the minima, which are subtracted, with their sign changed
};
inline constexpr int64_t kScalesAndMinimaBytes = 16;

// Superblock of Q4_K: four times 32 bytes of nibbles, of 64 columns each: the first 32 in the low nibbles.
inline constexpr int64_t kQ4KBytes = 144;
HWY_INLINE void UnpackQ4K(const uint8_t* block, float* out) {
  const DU32 d;
  const ScalesAndMinima factors(block);
  const uint8_t* const nibbles = block + kScalesAndMinimaBytes;
  for (int64_t part = 0; part < 8; part += 2, out += 64) {
    for (int64_t i = 0; i < 32; i += LanesF()) {
      const auto pairs = hn::PromoteTo(d, hn::LoadU(DU8(), nibbles + 16 * part + i));
      StoreAffine(hn::And(pairs, hn::Set(d, 15)), hn::Set(DF(), factors.scale[part]),
                  hn::Set(DF(), factors.offset[part]), out + i);
      StoreAffine(hn::ShiftRight<4>(pairs), hn::Set(DF(), factors.scale[part + 1]),
                  hn::Set(DF(), factors.offset[part + 1]), out + 32 + i);
    }
  }
}

// Superblock of Q5_K: as Q4_K, but before the nibbles 32 bytes of fifth bits: bit p of byte i is that of
// column i of part p.
inline constexpr int64_t kQ5KBytes = 176;
HWY_INLINE void UnpackQ5K(const uint8_t* block, float* out) {
  const DU32 d;
  const auto sixteen = hn::Set(d, 16);
  const ScalesAndMinima factors(block);
  const uint8_t* const fifths = block + kScalesAndMinimaBytes;
  const uint8_t* const nibbles = fifths + 32;
  for (int64_t part = 0; part < 8; part += 2, out += 64) {
    for (int64_t i = 0; i < 32; i += LanesF()) {
      const auto pairs = hn::PromoteTo(d, hn::LoadU(DU8(), nibbles + 16 * part + i));
      // Bits `part` and part + 1 at places 4 and 5.
      const auto fifth = hn::ShiftRightSame(hn::ShiftLeft<4>(hn::PromoteTo(d, hn::LoadU(DU8(), fifths + i))),
                                            static_cast<int>(part));
      const auto low = hn::Or(hn::And(pairs, hn::Set(d, 15)), hn::And(fifth, sixteen));
      const auto high = hn::Or(hn::ShiftRight<4>(pairs), hn::And(hn::ShiftRight<1>(fifth), sixteen));
      StoreAffine(low, hn::Set(DF(), factors.scale[part]), hn::Set(DF(), factors.offset[part]), out + i);
      StoreAffine(high, hn::Set(DF(), factors.scale[part + 1]), hn::Set(DF(), factors.offset[part + 1]),
                  out + 32 + i);
    }
  }
}

// Superblock of Q6_K: 128 bytes of low nibbles, 64 bytes of high bit pairs, sixteen int8 scales, F16 scale.
// Each half of 128 columns uses 64 and 32 bytes of them; columns of its four quarters share a byte of high
// bits.
inline constexpr int64_t kQ6KBytes = 210;
HWY_INLINE void UnpackQ6K(const uint8_t* block, float* out) {
  const DU32 d;
  const auto nibble = hn::Set(d, 15);
  const auto pair = hn::Set(d, 0x30);
  float scale[16];
  ScaleBytes<16>(reinterpret_cast<const int8_t*>(block + 192), LoadOneHalf(block + 208), scale);
  for (int64_t half = 0; half < 2; ++half, out += 128) {
    const uint8_t* const low = block + 64 * half;
    const uint8_t* const high = block + 128 + 32 * half;
    HWY_UNROLL(4)
    for (int64_t i = 0; i < 32; i += LanesF()) {
      const auto low0 = hn::PromoteTo(d, hn::LoadU(DU8(), low + i));
      const auto low1 = hn::PromoteTo(d, hn::LoadU(DU8(), low + 32 + i));
      const auto bits = hn::PromoteTo(d, hn::LoadU(DU8(), high + i));
      const hn::Vec<DU32> quarters[4] = {
          hn::Or(hn::And(low0, nibble), hn::And(hn::ShiftLeft<4>(bits), pair)),
          hn::Or(hn::And(low1, nibble), hn::And(hn::ShiftLeft<2>(bits), pair)),
          hn::Or(hn::ShiftRight<4>(low0), hn::And(bits, pair)),
          hn::Or(hn::ShiftRight<4>(low1), hn::And(hn::ShiftRight<2>(bits), pair))};
      HWY_UNROLL(4)
      for (int64_t quarter = 0; quarter < 4; ++quarter) {
        const auto quants = hn::Sub(hn::BitCast(DI32(), quarters[quarter]), hn::Set(DI32(), 32));
        const auto factor = hn::Set(DF(), scale[8 * half + 2 * quarter + i / 16]);
        hn::StoreU(hn::Mul(hn::ConvertTo(DF(), quants), factor), DF(), out + 32 * quarter + i);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#endif  // ISOTHERM_COMMON_KERNELS_UNPACK_INL_H_
