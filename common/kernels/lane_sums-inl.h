// Integer products of bytes, exact on every instruction set.

#if defined(ISOTHERM_COMMON_KERNELS_LANE_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_LANE_SUMS_INL_H_
#undef ISOTHERM_COMMON_KERNELS_LANE_SUMS_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_LANE_SUMS_INL_H_
#endif

#include <cstdint>

#include "common/kernels/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

using VI32 = hn::Vec<DI32>;
using DBytes = hn::Repartition<uint8_t, DF>;
using VBytes = hn::Vec<DBytes>;

using DWords = hn::Repartition<int16_t, DF>;
using VWords = hn::Vec<DWords>;

// sums + a * b, the products of two words to a lane.
HWY_INLINE VI32 AddPairs(VI32 sums, VWords a, VWords b) {
#if HWY_TARGET <= HWY_AVX3_DL
  // In assembly for the reason that LaneSums gives.
  asm("vpdpwssd %2, %1, %0" : "+v"(sums.raw) : "v"(a.raw), "v"(b.raw));
  return sums;
#elif HWY_TARGET <= HWY_AVX3
  return hn::Add(sums, VI32{_mm512_madd_epi16(a.raw, b.raw)});
#else
  return hn::Add(sums, VI32{_mm256_madd_epi16(a.raw, b.raw)});
#endif
}

// Exact sums of products of unsigned nibbles and signed bytes, four to a lane.
#if HWY_TARGET <= HWY_AVX3_DL
class LaneSums {
 public:
  HWY_INLINE explicit LaneSums(VI32 start) : sums_(start) {}
  HWY_INLINE void Add(VBytes nibbles, VBytes quants) {
    // In assembly because Highway's AVX3_DL checks the CPU for AVX512_VNNI but does not enable it in the
    // compiler.
    asm("vpdpbusd %2, %1, %0" : "+v"(sums_.raw) : "v"(nibbles.raw), "v"(quants.raw));
  }
  HWY_INLINE VI32 Total() const { return sums_; }
  // Total() + 256 * upper.Total(), where `upper` began with 0 and has at most four vectors: its sums, of four
  // products of at most 15 * 128 each, fit 16 bits.
  HWY_INLINE VI32 TotalWith(const LaneSums& upper) const {
    VI32 total = sums_;
    asm("vpdpwssd %2, %1, %0" : "+v"(total.raw) : "v"(upper.sums_.raw), "v"(hn::Set(DI32(), 256).raw));
    return total;
  }

 private:
  VI32 sums_;
};
#else
class LaneSums {
 public:
  HWY_INLINE explicit LaneSums(VI32 start) : start_(start), pairs_(hn::Zero(DPairs())) {}
  // Nothing saturates: eight vectors of two products of at most 15 * 128 make 30720.
  HWY_INLINE void Add(VBytes nibbles, VBytes quants) { pairs_ = hn::Add(pairs_, PairSums(nibbles, quants)); }
  HWY_INLINE VI32 Total() const { return hn::Add(start_, FoldPairs(pairs_, 1)); }
  HWY_INLINE VI32 TotalWith(const LaneSums& upper) const {
    return hn::Add(Total(), FoldPairs(upper.pairs_, 256));
  }

 private:
  using DPairs = hn::Repartition<int16_t, DF>;
  using VPairs = hn::Vec<DPairs>;
#if HWY_TARGET <= HWY_AVX3
  static HWY_INLINE VPairs PairSums(VBytes a, VBytes b) { return VPairs{_mm512_maddubs_epi16(a.raw, b.raw)}; }
  static HWY_INLINE VI32 FoldPairs(VPairs pairs, int16_t factor) {
    return VI32{_mm512_madd_epi16(pairs.raw, hn::Set(DPairs(), factor).raw)};
  }
#else
  static HWY_INLINE VPairs PairSums(VBytes a, VBytes b) { return VPairs{_mm256_maddubs_epi16(a.raw, b.raw)}; }
  static HWY_INLINE VI32 FoldPairs(VPairs pairs, int16_t factor) {
    return VI32{_mm256_madd_epi16(pairs.raw, hn::Set(DPairs(), factor).raw)};
  }
#endif

  VI32 start_;
  VPairs pairs_;
};
#endif

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#endif  // ISOTHERM_COMMON_KERNELS_LANE_SUMS_INL_H_
