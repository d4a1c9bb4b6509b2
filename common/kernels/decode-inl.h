// Decoders of packed rows, one for each weight type: vectors of F32 weights in registers. A quant times its
// scale needs at most 24 bits of mantissa in every format, so weights are exact; those of Q4_K, which
// subtracts a minimum, are rounded once.

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

HWY_INLINE float LoadOneHalf(const uint8_t* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

// Interface of every decoder:
//   Open(row, n)                  a row of n columns
//   Enter(begin, end)             columns of one group are decoded next
//   Decode(column, offset)        LanesF() weights from column + offset on; `column` is a multiple of 4 *
//   LanesF() from
//                                 the start of the group, `offset` a constant after unrolling. May decode up
//                                 to LanesF() - 1 columns past n, never more: they lie in the padding of the
//                                 row.
template <WeightType kType>
class RowDecoder;

template <>
class RowDecoder<WeightType::kF32> {
 public:
  HWY_INLINE void Open(const uint8_t* row, int64_t n) { row_ = reinterpret_cast<const float*>(row); }
  HWY_INLINE void Enter(int64_t begin, int64_t end) {}
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    return hn::LoadU(DF(), row_ + column + offset);
  }

 private:
  const float* row_ = nullptr;
};

template <>
class RowDecoder<WeightType::kF16> {
 public:
  HWY_INLINE void Open(const uint8_t* row, int64_t n) { row_ = row; }
  HWY_INLINE void Enter(int64_t begin, int64_t end) {}
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    return LoadHalf(row_ + 2 * (column + offset));
  }

 private:
  const uint8_t* row_ = nullptr;
};

template <>
class RowDecoder<WeightType::kBF16> {
 public:
  HWY_INLINE void Open(const uint8_t* row, int64_t n) { row_ = reinterpret_cast<const uint16_t*>(row); }
  HWY_INLINE void Enter(int64_t begin, int64_t end) {}
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    const auto bits = hn::PromoteTo(DU32(), hn::LoadU(DU16(), row_ + column + offset));
    return hn::BitCast(DF(), hn::ShiftLeft<16>(bits));
  }

 private:
  const uint16_t* row_ = nullptr;
};

// The F16 scales of a group as F32, so that the inner loop broadcasts them straight from memory.
class GroupScales {
 public:
  HWY_INLINE void Open(const uint8_t* scales) { scales_ = scales; }
  HWY_INLINE void Enter(int64_t begin, int64_t end) {
    const int64_t blocks = (end - begin) / kBlockColumns;
    const uint8_t* const from = scales_ + begin / kBlockColumns * 2;
    for (int64_t i = 0; i < blocks; i += LanesF()) hn::Store(LoadHalf(from + 2 * i), DF(), group_ + i);
    begin_ = begin;
  }
  HWY_INLINE const float& At(int64_t column, int64_t offset) const {
    return group_[(column - begin_) / kBlockColumns + offset / kBlockColumns];
  }

 private:
  const uint8_t* scales_ = nullptr;
  int64_t begin_ = 0;
  HWY_ALIGN float group_[kGroupColumns / kBlockColumns];
};

template <>
class RowDecoder<WeightType::kQ8_0> {
 public:
  HWY_INLINE void Open(const uint8_t* row, int64_t n) {
    quants_ = reinterpret_cast<const int8_t*>(row);
    scales_.Open(row + n);
  }
  HWY_INLINE void Enter(int64_t begin, int64_t end) { scales_.Enter(begin, end); }
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    const auto quants = hn::PromoteTo(DI32(), hn::LoadU(DI8(), quants_ + column + offset));
    return hn::Mul(hn::ConvertTo(DF(), quants), hn::Set(DF(), scales_.At(column, offset)));
  }

 private:
  const int8_t* quants_ = nullptr;
  GroupScales scales_;
};

template <>
class RowDecoder<WeightType::kQ4_0> {
 public:
  HWY_INLINE void Open(const uint8_t* row, int64_t n) {
    quants_ = row;
    scales_.Open(row + n / 2);
  }
  HWY_INLINE void Enter(int64_t begin, int64_t end) { scales_.Enter(begin, end); }

  // A block's 16 bytes hold columns 0..15 in the low nibbles and 16..31 in the high ones.
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    const int64_t in_block = offset % kBlockColumns;
    const uint8_t* const bytes = quants_ + column / 2 + offset / kBlockColumns * 16 + in_block % 16;
    const auto pairs = hn::PromoteTo(DU32(), hn::LoadU(DU8(), bytes));
    const auto scale = hn::Set(DF(), scales_.At(column, offset));
    return Scaled(in_block < 16 ? pairs : hn::ShiftRight<4>(pairs), scale);
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

  const uint8_t* quants_ = nullptr;
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

// Superblock of Q4_K: F16 scale and F16 scale of minima, eight pairs of 6-bit scales and minima in 12 bytes,
// nibbles.
inline constexpr int64_t kQ4KBytes = 144;
HWY_INLINE void UnpackQ4K(const uint8_t* block, float* out) {
  const float d = LoadOneHalf(block);
  const float dmin = LoadOneHalf(block + 2);
  const uint8_t* const packed = block + 4;
  float scale[8];
  float minimum[8];
  for (int i = 0; i < 4; ++i) {
    scale[i] = d * static_cast<float>(packed[i] & 63);
    minimum[i] = dmin * static_cast<float>(packed[i + 4] & 63);
    scale[i + 4] = d * static_cast<float>((packed[i + 8] & 15) | (packed[i] >> 6 << 4));
    minimum[i + 4] = dmin * static_cast<float>((packed[i + 8] >> 4) | (packed[i + 4] >> 6 << 4));
  }
  for (int i = 0; i < 4; ++i)
    UnpackNibbles64(block + 16 + 32 * i, scale + 2 * i, minimum + 2 * i, out + 64 * i);
}

// Superblock of Q6_K: 128 bytes of low nibbles, 64 bytes of high bit pairs, sixteen int8 scales, F16 scale.
// Each half of 128 columns uses 64 and 32 bytes of them; columns of its four quarters share a byte of high
// bits.
inline constexpr int64_t kQ6KBytes = 210;
HWY_INLINE void UnpackQ6K(const uint8_t* block, float* out) {
  const float d = LoadOneHalf(block + 208);
  for (int64_t half = 0; half < 2; ++half, out += 128) {
    const uint8_t* const low = block + 64 * half;
    const uint8_t* const high = block + 128 + 32 * half;
    const int8_t* const scales = reinterpret_cast<const int8_t*>(block + 192 + 8 * half);
    for (int64_t i = 0; i < 32; i += LanesF()) {
      const auto low0 = hn::PromoteTo(DU32(), hn::LoadU(DU8(), low + i));
      const auto low1 = hn::PromoteTo(DU32(), hn::LoadU(DU8(), low + 32 + i));
      const auto bits = hn::PromoteTo(DU32(), hn::LoadU(DU8(), high + i));
      const auto nibble = hn::Set(DU32(), 15);
      const auto pair = hn::Set(DU32(), 0x30);
      const hn::Vec<DU32> quarters[4] = {
          hn::Or(hn::And(low0, nibble), hn::And(hn::ShiftLeft<4>(bits), pair)),
          hn::Or(hn::And(low1, nibble), hn::And(hn::ShiftLeft<2>(bits), pair)),
          hn::Or(hn::ShiftRight<4>(low0), hn::And(bits, pair)),
          hn::Or(hn::ShiftRight<4>(low1), hn::And(hn::ShiftRight<2>(bits), pair))};
      for (int64_t quarter = 0; quarter < 4; ++quarter) {
        const auto quants = hn::Sub(hn::BitCast(DI32(), quarters[quarter]), hn::Set(DI32(), 32));
        const float scale = d * static_cast<float>(scales[2 * quarter + i / 16]);
        hn::StoreU(hn::Mul(hn::ConvertTo(DF(), quants), hn::Set(DF(), scale)), DF(), out + 32 * quarter + i);
      }
    }
  }
}

// K types unpack the group's superblocks into a buffer that stays in the first-level cache.
template <int64_t kBytes, void (*kUnpack)(const uint8_t*, float*)>
class SuperblockDecoder {
 public:
  HWY_INLINE void Open(const uint8_t* row, int64_t n) { row_ = row; }
  HWY_INLINE void Enter(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kSuperblockColumns) {
      kUnpack(row_ + i / kSuperblockColumns * kBytes, group_ + (i - begin));
    }
    begin_ = begin;
  }
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    return hn::Load(DF(), group_ + (column - begin_) + offset);
  }

 private:
  const uint8_t* row_ = nullptr;
  int64_t begin_ = 0;
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
