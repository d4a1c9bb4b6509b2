// Units of the blocks of a vector that products in integers round to 16 bits a value (integer_blocks-inl.h).

#if defined(ISOTHERM_COMMON_KERNELS_BLOCK_UNITS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_BLOCK_UNITS_INL_H_
#undef ISOTHERM_COMMON_KERNELS_BLOCK_UNITS_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_BLOCK_UNITS_INL_H_
#endif

#include <cstdint>

#include "common/kernels/decode-inl.h"
#include "common/kernels/lane_sums-inl.h"
#include "common/kernels/packed_row.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

inline constexpr int64_t kBlockVectors = kBlockColumns / LanesF();
inline constexpr int64_t kGroupBlocks = kGroupColumns / kBlockColumns;

// The largest of each two lanes of `a` and of `b`, in turn, those of each 128-bit block in that block.
template <class Lane>
HWY_INLINE VI32 MaxOfLanePairs(VI32 a, VI32 b) {
  const hn::Repartition<Lane, DF> d;
  const auto lower = hn::InterleaveLower(d, hn::BitCast(d, a), hn::BitCast(d, b));
  const auto upper = hn::InterleaveUpper(d, hn::BitCast(d, a), hn::BitCast(d, b));
  return hn::Max(hn::BitCast(DI32(), lower), hn::BitCast(DI32(), upper));
}

// The halves of `a`, then those of `b`, one on the other.
HWY_INLINE VI32 MaxOfHalves(VI32 a, VI32 b) {
  const DI32 d;
  return hn::Max(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a));
}

// The largest magnitude of a block in every lane's columns. Magnitudes order like their bits, NaN last.
HWY_INLINE VI32 MostOfBlock(const float* x) {
  VI32 most = hn::Zero(DI32());
  HWY_UNROLL(4)
  for (int64_t i = 0; i < kBlockVectors; ++i) {
    most = hn::Max(most, hn::BitCast(DI32(), hn::Abs(hn::LoadU(DF(), x + i * LanesF()))));
  }
  return most;
}

// Those of four blocks: lane b of each 128-bit block has what block b has in this 128-bit block's columns.
HWY_INLINE VI32 MostOfFourBlocks(const float* x) {
  const VI32 first = MaxOfLanePairs<int32_t>(MostOfBlock(x), MostOfBlock(x + kBlockColumns));
  const VI32 second =
      MaxOfLanePairs<int32_t>(MostOfBlock(x + 2 * kBlockColumns), MostOfBlock(x + 3 * kBlockColumns));
  return MaxOfLanePairs<int64_t>(first, second);
}

// Lane b is the largest magnitude of block b of LanesF() blocks: a tree that all of them climb side by side.
HWY_INLINE VF MostOfBlocks(const float* x) {
  constexpr int64_t kFour = 4 * kBlockColumns;
#if HWY_TARGET <= HWY_AVX3
  const VI32 even = MaxOfHalves(MostOfFourBlocks(x), MostOfFourBlocks(x + 2 * kFour));
  const VI32 odd = MaxOfHalves(MostOfFourBlocks(x + kFour), MostOfFourBlocks(x + 3 * kFour));
  const VI32 most =
      hn::Max(hn::OddEvenBlocks(odd, even), hn::SwapAdjacentBlocks(hn::OddEvenBlocks(even, odd)));
#else
  const VI32 most = MaxOfHalves(MostOfFourBlocks(x), MostOfFourBlocks(x + kFour));
#endif
  return hn::BitCast(DF(), most);
}

// Units of a group of x and what its values are multiplied with for their integers: kGroupBlocks each, on
// boundaries of a vector. Values are rounded by at most half a unit, 1.6e-5 of the largest magnitude. Blocks
// whose unit would have no inverse in F32 become zeros. A value that is not finite makes the unit infinite or
// NaN.
HWY_INLINE void FindUnits(const float* x, float* units, float* inverses) {
  const DF d;
  // The largest integer, 127 * 256 + 127: a signed upper and a signed lower byte.
  const VF most_integer = hn::Set(d, 32639.0f);
  HWY_UNROLL(2)
  for (int64_t block = 0; block < kGroupBlocks; block += LanesF()) {
    const VF most = MostOfBlocks(x + block * kBlockColumns);
    const auto vanishes = hn::Lt(most, hn::Set(d, 0x1p-100f));
    hn::Store(hn::IfThenZeroElse(vanishes, hn::Div(most, most_integer)), d, units + block);
    hn::Store(hn::IfThenZeroElse(vanishes, hn::Div(most_integer, most)), d, inverses + block);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#endif  // ISOTHERM_COMMON_KERNELS_BLOCK_UNITS_INL_H_
