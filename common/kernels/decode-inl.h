// Decoders of packed rows, one for each weight type: vectors of F32 weights in registers. A quant times its
// scale needs at most 24 bits of mantissa in every format, so weights are exact; those of Q4_K, which
// subtracts a minimum, are rounded once.
//
// Long because kernels need every decoder in the one file that is compiled for each instruction set.

#if defined(ISOTHERM_COMMON_KERNELS_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_DECODE_INL_H_
#undef ISOTHERM_COMMON_KERNELS_DECODE_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_DECODE_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "common/kernels/packed_row.h"
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

// Decoders are entered once for each group of columns. 512 columns make 16 scales, one AVX-512 vector, and
// two superblocks.
inline constexpr int64_t kGroupColumns = 512;
inline constexpr int64_t kBlockColumns = 32;
inline constexpr int64_t kSuperblockColumns = 256;

HWY_INLINE VF LoadHalf(const uint8_t* from) {
  return hn::PromoteTo(DF(), hn::LoadU(DF16(), reinterpret_cast<const hwy::float16_t*>(from)));
}

// LanesF() values of which the first `bytes` bytes may be read, zeros after them.
HWY_INLINE VF LoadFirstHalves(const uint8_t* from, int64_t bytes) {
  uint8_t padded[2 * LanesF()] = {};
  std::memcpy(padded, from, static_cast<size_t>(bytes));
  return LoadHalf(padded);
}

HWY_INLINE float LoadOneHalf(const uint8_t* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

// Interface of every decoder:
//   Open(row, n)            a row of n columns
//   Enter(begin, end)       these columns, of one group, are decoded next
//   Decode(column, offset)  LanesF() weights from begin + column + offset on; `column` is a multiple of
//                           4 * LanesF(), `offset` a constant after unrolling. Past the end of the row it may
//                           read LanesF() - 1 columns, never more: they lie in the padding
//   AheadBytes(columns)     bytes of so many columns, to be asked for in advance
template <WeightType kType>
class RowDecoder;

template <>
class RowDecoder<WeightType::kF32> {
 public:
  static constexpr int64_t AheadBytes(int64_t columns) { return 4 * columns; }
  HWY_INLINE void Open(const uint8_t* row, int64_t n) { row_ = reinterpret_cast<const float*>(row); }
  HWY_INLINE void Enter(int64_t begin, int64_t end) { group_ = row_ + begin; }
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    return hn::LoadU(DF(), group_ + column + offset);
  }

 private:
  const float* row_;
  const float* group_;
};

template <>
class RowDecoder<WeightType::kF16> {
 public:
  static constexpr int64_t AheadBytes(int64_t columns) { return 2 * columns; }
  HWY_INLINE void Open(const uint8_t* row, int64_t n) { row_ = row; }
  HWY_INLINE void Enter(int64_t begin, int64_t end) { group_ = row_ + 2 * begin; }
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    return LoadHalf(group_ + 2 * (column + offset));
  }

 private:
  const uint8_t* row_;
  const uint8_t* group_;
};

template <>
class RowDecoder<WeightType::kBF16> {
 public:
  static constexpr int64_t AheadBytes(int64_t columns) { return 2 * columns; }
  HWY_INLINE void Open(const uint8_t* row, int64_t n) { row_ = reinterpret_cast<const uint16_t*>(row); }
  HWY_INLINE void Enter(int64_t begin, int64_t end) { group_ = row_ + begin; }
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    const auto bits = hn::PromoteTo(DU32(), hn::LoadU(DU16(), group_ + column + offset));
    return hn::BitCast(DF(), hn::ShiftLeft<16>(bits));
  }

 private:
  const uint16_t* row_;
  const uint16_t* group_;
};

// The F16 scales of a group as F32, so that the inner loop broadcasts them straight from memory.
class GroupScales {
 public:
  // They begin `offset` bytes into the row, which is padded to a multiple of 64.
  HWY_INLINE void Open(const uint8_t* row, int64_t offset, int64_t n) {
    scales_ = row + offset;
    end_ = row + (offset + n / kBlockColumns * 2 + 63) / 64 * 64;
  }
  HWY_INLINE void Enter(int64_t begin, int64_t end) {
    const uint8_t* from = scales_ + begin / kBlockColumns * 2;
    for (int64_t i = 0; i < (end - begin) / kBlockColumns; i += LanesF(), from += 2 * LanesF()) {
      const int64_t readable = end_ - from;
      hn::Store(readable >= 2 * LanesF() ? LoadHalf(from) : LoadFirstHalves(from, readable), DF(),
                group_ + i);
    }
  }
  HWY_INLINE VF At(int64_t column, int64_t offset) const {
    return hn::Set(DF(), group_[static_cast<uint64_t>(column) / kBlockColumns + offset / kBlockColumns]);
  }

 private:
  const uint8_t* scales_;
  const uint8_t* end_;
  HWY_ALIGN float group_[kGroupColumns / kBlockColumns];
};

template <>
class RowDecoder<WeightType::kQ8_0> {
 public:
  static constexpr int64_t AheadBytes(int64_t columns) { return columns * 34 / kBlockColumns; }
  HWY_INLINE void Open(const uint8_t* row, int64_t n) {
    quants_ = reinterpret_cast<const int8_t*>(row);
    scales_.Open(row, n, n);
  }
  HWY_INLINE void Enter(int64_t begin, int64_t end) {
    group_ = quants_ + begin;
    scales_.Enter(begin, end);
  }
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    const auto quants = hn::PromoteTo(DI32(), hn::LoadU(DI8(), group_ + column + offset));
    return hn::Mul(hn::ConvertTo(DF(), quants), scales_.At(column, offset));
  }

 private:
  const int8_t* quants_;
  const int8_t* group_;
  GroupScales scales_;
};

template <>
class RowDecoder<WeightType::kQ4_0> {
 public:
  static constexpr int64_t AheadBytes(int64_t columns) { return columns * 18 / kBlockColumns; }
  HWY_INLINE void Open(const uint8_t* row, int64_t n) {
    nibbles_ = row;
    scales_.Open(row, n / 2, n);
  }
  HWY_INLINE void Enter(int64_t begin, int64_t end) {
    group_ = nibbles_ + begin / 2;
    scales_.Enter(begin, end);
  }
  // A block's 16 bytes hold columns 0..15 in the low nibbles and 16..31 in the high ones.
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    const int64_t in_block = offset % kBlockColumns;
    const int64_t byte = offset / kBlockColumns * 16 + in_block % 16;
    const auto pairs =
        hn::PromoteTo(DU32(), hn::LoadU(DU8(), group_ + static_cast<uint64_t>(column) / 2 + byte));
    return Scaled(in_block < 16 ? pairs : hn::ShiftRight<4>(pairs), scales_.At(column, offset));
  }

 private:
  using VU32 = hn::Vec<DU32>;
#if HWY_TARGET <= HWY_AVX3
  // One permutation looks all sixteen values up; it reads the low four bits of a lane and ignores the rest.
  static HWY_INLINE VF Scaled(VU32 nibbles, VF scale) {
    alignas(64) static constexpr float kValues[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    const VF table = hn::Mul(hn::Load(DF(), kValues), scale);
    return VF{_mm512_permutexvar_ps(nibbles.raw, table.raw)};
  }
#else
  static HWY_INLINE VF Scaled(VU32 nibbles, VF scale) {
    const auto quants = hn::BitCast(DI32(), hn::And(nibbles, hn::Set(DU32(), 15)));
    return hn::MulAdd(hn::ConvertTo(DF(), quants), scale, hn::Mul(scale, hn::Set(DF(), -8.0f)));
  }
#endif

  const uint8_t* nibbles_;
  const uint8_t* group_;
  GroupScales scales_;
};

// 32 bytes of nibbles: columns 0..31 in the low ones, 32..63 in the high ones. out = nibble * scale -
// minimum.
HWY_INLINE void UnpackNibbles64(const uint8_t* bytes, const float scale[2], const float minimum[2],
                                float* out) {
  for (int64_t i = 0; i < 32; i += LanesF()) {
    const auto pairs = hn::PromoteTo(DU32(), hn::LoadU(DU8(), bytes + i));
    const auto low = hn::BitCast(DI32(), hn::And(pairs, hn::Set(DU32(), 15)));
    const auto high = hn::BitCast(DI32(), hn::ShiftRight<4>(pairs));
    hn::StoreU(hn::MulSub(hn::ConvertTo(DF(), low), hn::Set(DF(), scale[0]), hn::Set(DF(), minimum[0])), DF(),
               out + i);
    hn::StoreU(hn::MulSub(hn::ConvertTo(DF(), high), hn::Set(DF(), scale[1]), hn::Set(DF(), minimum[1])),
               DF(), out + 32 + i);
  }
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

// Superblock of Q4_K: F16 scale and F16 scale of minima, eight 6-bit scales and eight 6-bit minima in 12
// bytes, nibbles. The first four scales and minima take the low six bits of a byte each; the others have
// their low four bits in the last four bytes and their high two on top of the first eight.
inline constexpr int64_t kQ4KBytes = 144;
HWY_INLINE void UnpackQ4K(const uint8_t* block, float* out) {
  uint32_t packed[3];
  std::memcpy(packed, block + 4, sizeof(packed));
  const uint32_t scales[2] = {packed[0] & 0x3f3f3f3f,
                              (packed[2] & 0x0f0f0f0f) | (packed[0] >> 2 & 0x30303030)};
  const uint32_t minima[2] = {packed[1] & 0x3f3f3f3f,
                              (packed[2] >> 4 & 0x0f0f0f0f) | (packed[1] >> 2 & 0x30303030)};
  float scale[8];
  float minimum[8];
  ScaleBytes<8>(reinterpret_cast<const uint8_t*>(scales), LoadOneHalf(block), scale);
  ScaleBytes<8>(reinterpret_cast<const uint8_t*>(minima), LoadOneHalf(block + 2), minimum);
  for (int i = 0; i < 4; ++i)
    UnpackNibbles64(block + 16 + 32 * i, scale + 2 * i, minimum + 2 * i, out + 64 * i);
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

// K types unpack the group's superblocks into a buffer that stays in the first-level cache.
template <int64_t kBytes, void (*kUnpack)(const uint8_t*, float*)>
class SuperblockDecoder {
 public:
  static constexpr int64_t AheadBytes(int64_t columns) { return columns * kBytes / kSuperblockColumns; }
  HWY_INLINE void Open(const uint8_t* row, int64_t n) { row_ = row; }
  HWY_INLINE void Enter(int64_t begin, int64_t end) {
    const uint8_t* superblock = row_ + begin / kSuperblockColumns * kBytes;
    for (int64_t i = 0; i < end - begin; i += kSuperblockColumns, superblock += kBytes)
      kUnpack(superblock, group_ + i);
  }
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    return hn::Load(DF(), group_ + column + offset);
  }

 private:
  const uint8_t* row_;
  HWY_ALIGN float group_[kGroupColumns];
};

template <>
class RowDecoder<WeightType::kQ4_K> : public SuperblockDecoder<kQ4KBytes, UnpackQ4K> {};

template <>
class RowDecoder<WeightType::kQ6_K> : public SuperblockDecoder<kQ6KBytes, UnpackQ6K> {};

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#endif  // ISOTHERM_COMMON_KERNELS_DECODE_INL_H_
