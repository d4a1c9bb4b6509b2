// Blocks of quantised weights and of vectors as products in integers read them (integer_products-inl.h).

#if defined(ISOTHERM_COMMON_KERNELS_INTEGER_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_INTEGER_BLOCKS_INL_H_
#undef ISOTHERM_COMMON_KERNELS_INTEGER_BLOCKS_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_INTEGER_BLOCKS_INL_H_
#endif

#include <array>
#include <cstdint>

#include "common/kernels/block_units-inl.h"
#include "common/kernels/decode-inl.h"
#include "common/kernels/lane_sums-inl.h"
#include "common/kernels/packed_row.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

// LanesF() values of a block; 16 bits saturate only at those that are not finite.
HWY_INLINE VI32 RoundToIntegers(const float* x, float inverse) {
  return hn::NearestInt(hn::Mul(hn::LoadU(DF(), x), hn::Set(DF(), inverse)));
}

// Words of `a` and `b`, four of each in every 128-bit block: the order of x86.
HWY_INLINE VWords PackWords(VI32 a, VI32 b) { return hn::ReorderDemote2To(DWords(), a, b); }

// Lanes of a vector whose 128-bit blocks hold as many lanes of each of kVectors vectors: those of the first
// vector, then those of the second one, and so on.
template <int64_t kVectors>
constexpr std::array<int32_t, LanesF()> LanesByVector() {
  constexpr int64_t kRun = 4 / kVectors;
  constexpr int64_t kVectorLanes = LanesF() / kVectors;
  std::array<int32_t, LanesF()> lanes = {};
  for (int64_t i = 0; i < LanesF(); ++i) {
    const int64_t lane = i % kVectorLanes;
    lanes[i] = static_cast<int32_t>(lane / kRun * 4 + i / kVectorLanes * kRun + lane % kRun);
  }
  return lanes;
}

template <int64_t kVectors, class V>
HWY_INLINE V OrderByVector(V vector) {
  alignas(64) static constexpr std::array<int32_t, LanesF()> kLanes = LanesByVector<kVectors>();
  const auto lanes = hn::SetTableIndices(DI32(), kLanes.data());
  return hn::BitCast(hn::DFromV<V>(), hn::TableLookupLanes(hn::BitCast(DI32(), vector), lanes));
}

// The blocks of a type, panel by panel:
//   kPanelColumns, kPanelBytes    of a vector
//   Round(x, inverses, panel)     writes a panel from its columns and the inverse of each block's unit
//   kParts                        how often a panel of weights is loaded from, for LanesF() sums each:
//   LoadWeights(quants, part), LoadInput(panel, part), Multiply(weights, input)
//   Scales(scales, column, part)  of these sums; `column` of the group is the panel's first
// Where a row ends within a panel, the rest of the panel is loaded from its scales and padding.
template <WeightType kType>
class IntegerBlocks;

// Four blocks make a panel: 64 bytes of nibbles, of which a 32-bit lane holds columns of a single block. The
// integers lie as the nibbles meet them, in planes of 64 bytes: the upper bytes of those that low nibbles are
// multiplied with, the upper bytes for the high nibbles, the lower bytes likewise. A last plane has for each
// lane -8 times the sum of its integers, as a nibble is quant + 8.
template <>
class IntegerBlocks<WeightType::kQ4_0> {
 public:
  static constexpr int64_t kPanelColumns = 4 * kBlockColumns;
  static constexpr int64_t kPanelBytes = 5 * 64;
  static constexpr int64_t kParts = 16 / LanesF();

  struct Weights {
    VBytes low, high;
  };
  struct Input {
    Weights upper, lower;  // bytes for the low and the high nibbles
    VI32 offsets;
  };

  static HWY_INLINE void Round(const float* x, const float* inverses, uint8_t* panel) {
    const VBytes eight = hn::Set(DBytes(), 8);
    HWY_UNROLL(2)
    for (int64_t part = 0; part < kParts; ++part) {
      const Digits low = RoundHalves(x, inverses, part);
      const Digits high = RoundHalves(x + kHalf, inverses, part);
      const Input input = {{low.upper, high.upper}, {low.lower, high.lower}, hn::Zero(DI32())};
      const DBytes d;
      uint8_t* const to = panel + part * kPartBytes;
      hn::Store(low.upper, d, to);
      hn::Store(high.upper, d, to + kPlane);
      hn::Store(low.lower, d, to + 2 * kPlane);
      hn::Store(high.lower, d, to + 3 * kPlane);
      hn::Store(hn::Neg(Multiply({eight, eight}, input)), DI32(),
                reinterpret_cast<int32_t*>(to + 4 * kPlane));
    }
  }

  static HWY_INLINE Weights LoadWeights(const uint8_t* quants, int64_t part) {
    const auto pairs = hn::Load(DBytes(), quants + part * kPartBytes);
    const auto nibble = hn::Set(DBytes(), 15);
    const auto shifted = hn::BitCast(DBytes(), hn::ShiftRight<4>(hn::BitCast(DU32(), pairs)));
    return {hn::And(pairs, nibble), hn::And(shifted, nibble)};
  }

  static HWY_INLINE Input LoadInput(const uint8_t* panel, int64_t part) {
    const uint8_t* const from = panel + part * kPartBytes;
    const DBytes d;
    return {{hn::Load(d, from), hn::Load(d, from + kPlane)},
            {hn::Load(d, from + 2 * kPlane), hn::Load(d, from + 3 * kPlane)},
            hn::Load(DI32(), reinterpret_cast<const int32_t*>(from + 4 * kPlane))};
  }

  // At most 8 * 15 * 32639 by magnitude: exact in F32.
  static HWY_INLINE VI32 Multiply(const Weights& weights, const Input& input) {
    LaneSums upper(hn::Zero(DI32()));
    upper.Add(weights.low, input.upper.low);
    upper.Add(weights.high, input.upper.high);
    LaneSums lower(input.offsets);
    lower.Add(weights.low, input.lower.low);
    lower.Add(weights.high, input.lower.high);
    return lower.TotalWith(upper);
  }

  static HWY_INLINE VF Scales(const GroupScales& scales, int64_t column, int64_t part) {
    alignas(64) static constexpr int32_t kBlockOfLane[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    const auto lanes = hn::SetTableIndices(DF(), kBlockOfLane + part * LanesF());
    return hn::TableLookupLanes(scales.FourAt(column), lanes);
  }

 private:
  static constexpr int64_t kHalf = kBlockColumns / 2;
  static constexpr int64_t kPlane = 64;
  static constexpr int64_t kPartBytes = 4 * LanesF();

  struct Digits {
    VBytes upper, lower;
  };

  // Of the integers of the first halves of a part's blocks, one block after the other.
  static HWY_INLINE Digits RoundHalves(const float* x, const float* inverses, int64_t part) {
    VI32 integers[4];
    HWY_UNROLL(4)
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t at = part * kPartBytes + i * LanesF();
      const int64_t block = at / kHalf;
      integers[i] = RoundToIntegers(x + block * kBlockColumns + at % kHalf, inverses[block]);
    }
    const VWords even = PackWords(integers[0], integers[2]);
    const VWords odd = PackWords(integers[1], integers[3]);
    const VWords half = hn::Set(DWords(), 128);
    return {MergeBytes(hn::ShiftRight<8>(hn::Add(even, half)), hn::Add(odd, half)),
            MergeBytes(even, hn::ShiftLeft<8>(odd))};
  }

  // The lower bytes of `even` and the upper ones of `odd`, as RoundHalves packs them, in order.
  static HWY_INLINE VBytes MergeBytes(VWords even, VWords odd) {
    alignas(16) static constexpr uint8_t kOrder[16] = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
    const DBytes d;
    const VBytes merged = hn::OddEven(hn::BitCast(d, odd), hn::BitCast(d, even));
    return OrderByVector<4>(hn::TableLookupBytes(merged, hn::LoadDup128(d, kOrder)));
  }
};

// A block makes a panel; its integers are 16-bit words.
template <>
class IntegerBlocks<WeightType::kQ8_0> {
 public:
  static constexpr int64_t kPanelColumns = kBlockColumns;
  static constexpr int64_t kPanelBytes = kBlockColumns * sizeof(int16_t);
  static constexpr int64_t kParts = 1;

  struct Weights {
    VWords words[kBlockVectors / 2];
  };
  using Input = Weights;

  static HWY_INLINE void Round(const float* x, const float* inverses, uint8_t* panel) {
    HWY_UNROLL(2)
    for (int64_t i = 0; i < kBlockColumns; i += 2 * LanesF()) {
      const VWords words =
          PackWords(RoundToIntegers(x + i, *inverses), RoundToIntegers(x + i + LanesF(), *inverses));
      hn::Store(OrderByVector<2>(words), DWords(), reinterpret_cast<int16_t*>(panel) + i);
    }
  }

  static HWY_INLINE Weights LoadWeights(const uint8_t* quants, int64_t) {
    const DWords d;
    const hn::Rebind<int8_t, DWords> bytes;
    Weights weights;
    HWY_UNROLL(2)
    for (int64_t i = 0; i < kBlockVectors / 2; ++i) {
      const auto* const from = reinterpret_cast<const int8_t*>(quants) + i * 2 * LanesF();
      weights.words[i] = hn::PromoteTo(d, hn::LoadU(bytes, from));
    }
    return weights;
  }

  static HWY_INLINE Input LoadInput(const uint8_t* panel, int64_t) {
    Input input;
    HWY_UNROLL(2)
    for (int64_t i = 0; i < kBlockVectors / 2; ++i) {
      input.words[i] = hn::Load(DWords(), reinterpret_cast<const int16_t*>(panel) + i * 2 * LanesF());
    }
    return input;
  }

  // At most 4 * 128 * 32639 by magnitude: exact in F32.
  static HWY_INLINE VI32 Multiply(const Weights& weights, const Input& input) {
    VI32 even = hn::Zero(DI32());
    VI32 odd = even;
    HWY_UNROLL(2)
    for (int64_t i = 0; i < kBlockVectors / 2; ++i) {
      even = hn::ReorderWidenMulAccumulate(DI32(), weights.words[i], input.words[i], even, odd);
    }
    return hn::Add(even, odd);
  }

  static HWY_INLINE VF Scales(const GroupScales& scales, int64_t column, int64_t) {
    return scales.At(column, 0);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#endif  // ISOTHERM_COMMON_KERNELS_INTEGER_BLOCKS_INL_H_
