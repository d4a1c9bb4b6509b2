// Blocks of quantised weights and of vectors as products in integers read them (integer_products-inl.h).

#if defined(ISOTHERM_COMMON_KERNELS_INTEGER_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_INTEGER_BLOCKS_INL_H_
#undef ISOTHERM_COMMON_KERNELS_INTEGER_BLOCKS_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_INTEGER_BLOCKS_INL_H_
#endif

#include <bit>
#include <cstdint>

#include "common/kernels/decode-inl.h"
#include "common/kernels/lane_sums-inl.h"
#include "common/kernels/packed_row.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

inline constexpr int64_t kBlockVectors = kBlockColumns / LanesF();

// 32 values of a vector: unit * integers.
struct IntegerBlock {
  // The largest integer, 127 * 256 + 127: a signed upper and a signed lower byte.
  static constexpr float kMost = 32639;

  // Values are rounded by at most half a unit, 1.6e-5 of the largest magnitude. Blocks whose unit would have
  // no inverse in F32 become zeros. A value that is not finite makes the unit infinite or NaN.
  HWY_INLINE explicit IntegerBlock(const float* x) {
    const DF d;
    const DI32 di;
    // Magnitudes order like their bits, NaN last.
    auto most = hn::Zero(di);
    HWY_UNROLL(4)
    for (int64_t i = 0; i < kBlockVectors; ++i) {
      most = hn::Max(most, hn::BitCast(di, hn::Abs(hn::LoadU(d, x + i * LanesF()))));
    }
    const float magnitude = std::bit_cast<float>(hn::GetLane(hn::MaxOfLanes(di, most)));
    const bool vanishes = magnitude < 0x1p-100f;
    const VF inverse = hn::Set(d, vanishes ? 0.0f : kMost / magnitude);
    HWY_UNROLL(4)
    for (int64_t i = 0; i < kBlockVectors; ++i) {
      integers[i] = hn::NearestInt(hn::Mul(hn::LoadU(d, x + i * LanesF()), inverse));
    }
    unit = vanishes ? 0.0f : magnitude / kMost;
  }

  VI32 integers[kBlockVectors];
  float unit;
};

// The blocks of a type, panel by panel:
//   kPanelColumns, kPanelBytes    of a vector
//   Store(block, b, panel)        block b of a panel
//   Finish(panel)                 when its blocks are stored; those past the vector's end are zeros
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

  static HWY_INLINE void Store(const IntegerBlock& block, int64_t b, uint8_t* panel) {
    constexpr int64_t kHalf = kBlockColumns / 2;
    auto* const to = reinterpret_cast<int8_t*>(panel + b * kHalf);
    HWY_UNROLL(4)
    for (int64_t i = 0; i < kBlockVectors; ++i) {
      const int64_t column = i * LanesF();
      const int64_t at = column / kHalf * kPlane + column % kHalf;
      const auto integers = block.integers[i];
      const auto upper = hn::ShiftRight<8>(hn::Add(integers, hn::Set(DI32(), 128)));
      hn::StoreU(hn::DemoteTo(DI8(), upper), DI8(), to + at);
      hn::StoreU(hn::DemoteTo(DI8(), hn::Sub(integers, hn::ShiftLeft<8>(upper))), DI8(),
                 to + 2 * kPlane + at);
    }
  }

  static HWY_INLINE void Finish(uint8_t* panel) {
    const VBytes eight = hn::Set(DBytes(), 8);
    for (int64_t part = 0; part < kParts; ++part) {
      Input input = LoadInput(panel, part);
      input.offsets = hn::Zero(DI32());
      hn::Store(hn::Neg(Multiply({eight, eight}, input)), DI32(),
                reinterpret_cast<int32_t*>(panel + 4 * kPlane + part * kPartBytes));
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
  static constexpr int64_t kPlane = 64;
  static constexpr int64_t kPartBytes = 4 * LanesF();
};

// A block makes a panel; its integers are 16-bit words.
template <>
class IntegerBlocks<WeightType::kQ8_0> {
 public:
  static constexpr int64_t kPanelColumns = kBlockColumns;
  static constexpr int64_t kPanelBytes = kBlockColumns * sizeof(int16_t);
  static constexpr int64_t kParts = 1;

  using DWords = hn::Repartition<int16_t, DF>;
  struct Weights {
    hn::Vec<DWords> words[kBlockVectors / 2];
  };
  using Input = Weights;

  static HWY_INLINE void Store(const IntegerBlock& block, int64_t, uint8_t* panel) {
    const hn::Rebind<int16_t, DF> d;
    HWY_UNROLL(4)
    for (int64_t i = 0; i < kBlockVectors; ++i) {
      hn::StoreU(hn::DemoteTo(d, block.integers[i]), d, reinterpret_cast<int16_t*>(panel) + i * LanesF());
    }
  }

  static HWY_INLINE void Finish(uint8_t*) {}

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
