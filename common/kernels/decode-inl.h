// Decoders of packed rows, one for each weight type: vectors of F32 weights in registers. A quant times its
// scale needs at most 24 bits of mantissa in every format, so weights are exact; those of types with a
// minimum are rounded once.
//
// Long because kernels need every decoder in the one file that is compiled for each instruction set.

#if defined(ISOTHERM_COMMON_KERNELS_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_DECODE_INL_H_
#undef ISOTHERM_COMMON_KERNELS_DECODE_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_DECODE_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/kernels/packed_row.h"
#include "common/kernels/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

// Decoders are entered once for each group of columns. 512 columns make 16 scales, one AVX-512 vector, and
// two superblocks.
inline constexpr int64_t kGroupColumns = 512;

// LanesF() values of which the first `bytes` bytes may be read, zeros after them.
HWY_INLINE VF LoadFirstHalves(const uint8_t* from, int64_t bytes) {
  uint8_t padded[2 * LanesF()] = {};
  std::memcpy(padded, from, static_cast<size_t>(bytes));
  return LoadHalf(padded);
}

// Scales of LanesF() blocks of a row that is padded up to `end`; zeros past it.
HWY_INLINE VF LoadScales(const uint8_t* from, const uint8_t* end) {
  const int64_t readable = end - from;
  return readable >= 2 * LanesF() ? LoadHalf(from) : LoadFirstHalves(from, std::max<int64_t>(readable, 0));
}

// Interface of every decoder:
//   Open(row, n)            a row of n columns
//   Enter(begin, end)       these columns, of one group, are decoded next
//   Decode(column, offset)  LanesF() weights from begin + column + offset on; `column` is a multiple of
//                           4 * LanesF(), `offset` a constant after unrolling. Past the end of the row it may
//                           read LanesF() - 1 columns, never more: they lie in the padding
//   AheadBytes(columns)     bytes of so many columns, to be asked for in advance
//   kScalesApart            they include F16 scales, one a block, that lie behind the row's quants
// Those with scales apart also give both for themselves:
//   Enter(begin, end, factor)       as Enter, with all scales multiplied by the factor
//   Quants(column, offset)          the integers that Decode multiplies with
//   Scales(column, offset)          these
template <WeightType kType>
class RowDecoder;

template <>
class RowDecoder<WeightType::kF32> {
 public:
  static constexpr bool kScalesApart = false;
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
  static constexpr bool kScalesApart = false;
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
  static constexpr bool kScalesApart = false;
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

// The F16 scales of a group as F32, so that the inner loop broadcasts them straight from memory, and
// multiplied by factors, which is rounded.
class GroupScales {
 public:
  // They begin `offset` bytes into the row, which is padded to a multiple of 64.
  HWY_INLINE void Open(const uint8_t* row, int64_t offset, int64_t n) {
    scales_ = row + offset;
    end_ = row + (offset + n / kBlockColumns * 2 + 63) / 64 * 64;
  }
  HWY_INLINE void Enter(int64_t begin, int64_t end) {
    Fill(begin, end, [](VF scales, int64_t) HWY_ATTR { return scales; });
  }
  HWY_INLINE void Enter(int64_t begin, int64_t end, VF factor) {
    Fill(begin, end, [factor](VF scales, int64_t) HWY_ATTR { return hn::Mul(scales, factor); });
  }
  // factors[i] for block i of the row, readable up to a multiple of 64 bytes.
  HWY_INLINE void Enter(int64_t begin, int64_t end, const float* factors) {
    Fill(begin, end, [factors](VF scales, int64_t block) HWY_ATTR {
      return hn::Mul(scales, hn::Load(DF(), factors + block));
    });
  }
  HWY_INLINE VF At(int64_t column, int64_t offset) const {
    return hn::Set(DF(), group_[static_cast<uint64_t>(column) / kBlockColumns + offset / kBlockColumns]);
  }
  // Of four blocks from `column` on, in every 128 bits.
  HWY_INLINE VF FourAt(int64_t column) const { return hn::LoadDup128(DF(), group_ + column / kBlockColumns); }

 private:
  // multiply(scales, the first one's block).
  template <class Multiply>
  HWY_INLINE void Fill(int64_t begin, int64_t end, const Multiply& multiply) {
    const int64_t first = begin / kBlockColumns;
    if (end - begin == kGroupColumns) {
      HWY_UNROLL(2)
      for (int64_t i = 0; i < kGroupColumns / kBlockColumns; i += LanesF()) {
        hn::Store(multiply(LoadHalf(scales_ + 2 * (first + i)), first + i), DF(), group_ + i);
      }
      return;
    }
    for (int64_t i = 0; i < (end - begin) / kBlockColumns; i += LanesF()) {
      hn::Store(multiply(LoadScales(scales_ + 2 * (first + i), end_), first + i), DF(), group_ + i);
    }
  }

  const uint8_t* scales_;
  const uint8_t* end_;
  HWY_ALIGN float group_[kGroupColumns / kBlockColumns];
};

template <>
class RowDecoder<WeightType::kQ8_0> {
 public:
  static constexpr bool kScalesApart = true;
  static constexpr int64_t AheadBytes(int64_t columns) { return columns * 34 / kBlockColumns; }
  HWY_INLINE void Open(const uint8_t* row, int64_t n) {
    quants_ = reinterpret_cast<const int8_t*>(row);
    scales_.Open(row, n, n);
  }
  template <class... Factor>
  HWY_INLINE void Enter(int64_t begin, int64_t end, Factor... factor) {
    group_ = quants_ + begin;
    scales_.Enter(begin, end, factor...);
  }
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    return hn::Mul(Quants(column, offset), Scales(column, offset));
  }
  HWY_INLINE VF Quants(int64_t column, int64_t offset) const {
    return hn::ConvertTo(DF(), hn::PromoteTo(DI32(), hn::LoadU(DI8(), group_ + column + offset)));
  }
  HWY_INLINE VF Scales(int64_t column, int64_t offset) const { return scales_.At(column, offset); }

 private:
  const int8_t* quants_;
  const int8_t* group_;
  GroupScales scales_;
};

template <>
class RowDecoder<WeightType::kQ4_0> {
 public:
  static constexpr bool kScalesApart = true;
  static constexpr int64_t AheadBytes(int64_t columns) { return columns * 18 / kBlockColumns; }
  HWY_INLINE void Open(const uint8_t* row, int64_t n) {
    nibbles_ = row;
    scales_.Open(row, n / 2, n);
  }
  template <class... Factor>
  HWY_INLINE void Enter(int64_t begin, int64_t end, Factor... factor) {
    group_ = nibbles_ + begin / 2;
    scales_.Enter(begin, end, factor...);
  }
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    return hn::Mul(Quants(column, offset), Scales(column, offset));
  }
  // A block's 16 bytes hold columns 0..15 in the low nibbles and 16..31 in the high ones.
  HWY_INLINE VF Quants(int64_t column, int64_t offset) const {
    const int64_t in_block = offset % kBlockColumns;
    const int64_t byte = offset / kBlockColumns * 16 + in_block % 16;
    const auto pairs =
        hn::PromoteTo(DU32(), hn::LoadU(DU8(), group_ + static_cast<uint64_t>(column) / 2 + byte));
    return Quants(in_block < 16 ? pairs : hn::ShiftRight<4>(pairs));
  }
  HWY_INLINE VF Scales(int64_t column, int64_t offset) const { return scales_.At(column, offset); }

 private:
  // Of the nibbles in the low four bits.
  static HWY_INLINE VF Quants(hn::Vec<DU32> pairs) {
#if HWY_TARGET <= HWY_AVX3
    // One permutation looks them up; it ignores the other bits.
    alignas(64) static constexpr float kValues[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    return VF{_mm512_permutexvar_ps(pairs.raw, hn::Load(DF(), kValues).raw)};
#else
    const auto nibbles = hn::BitCast(DI32(), hn::And(pairs, hn::Set(DU32(), 15)));
    return hn::ConvertTo(DF(), hn::Sub(nibbles, hn::Set(DI32(), 8)));
#endif
  }

  const uint8_t* nibbles_;
  const uint8_t* group_;
  GroupScales scales_;
};

// Types that keep the file's blocks unpack those of the group into a buffer that stays in the first-level
// cache.
template <int64_t kColumns, int64_t kBytes, void (*kUnpack)(const uint8_t*, float*)>
class BlockDecoder {
 public:
  static constexpr bool kScalesApart = false;
  static constexpr int64_t AheadBytes(int64_t columns) { return columns * kBytes / kColumns; }
  HWY_INLINE void Open(const uint8_t* row, int64_t n) { row_ = row; }
  HWY_INLINE void Enter(int64_t begin, int64_t end) {
    const uint8_t* block = row_ + begin / kColumns * kBytes;
    for (int64_t i = 0; i < end - begin; i += kColumns, block += kBytes) kUnpack(block, group_ + i);
  }
  HWY_INLINE VF Decode(int64_t column, int64_t offset) const {
    return hn::Load(DF(), group_ + column + offset);
  }

 private:
  const uint8_t* row_;
  HWY_ALIGN float group_[kGroupColumns];
};

template <>
class RowDecoder<WeightType::kQ4_1> : public BlockDecoder<kBlockColumns, kQ41Bytes, UnpackQ41> {};

template <>
class RowDecoder<WeightType::kQ5_0> : public BlockDecoder<kBlockColumns, kQ50Bytes, UnpackQ50> {};

template <>
class RowDecoder<WeightType::kQ5_1> : public BlockDecoder<kBlockColumns, kQ51Bytes, UnpackQ51> {};

template <>
class RowDecoder<WeightType::kQ4_K> : public BlockDecoder<kSuperblockColumns, kQ4KBytes, UnpackQ4K> {};

template <>
class RowDecoder<WeightType::kQ5_K> : public BlockDecoder<kSuperblockColumns, kQ5KBytes, UnpackQ5K> {};

template <>
class RowDecoder<WeightType::kQ6_K> : public BlockDecoder<kSuperblockColumns, kQ6KBytes, UnpackQ6K> {};

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#endif  // ISOTHERM_COMMON_KERNELS_DECODE_INL_H_
