// Sums of Q4_0 rows times factors, in integers: half the instructions of sums in F32.

#if defined(ISOTHERM_COMMON_KERNELS_INTEGER_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_INTEGER_SUMS_INL_H_
#undef ISOTHERM_COMMON_KERNELS_INTEGER_SUMS_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_INTEGER_SUMS_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstdint>

#include "common/kernels/decode-inl.h"
#include "common/kernels/lane_sums-inl.h"
#include "common/kernels/packed_row.h"
#include "common/kernels/read_ahead-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

// Rows are taken in pairs, so that a lane holds a word of one and the same word of the other: four columns of
// two rows, of which one instruction multiplies and adds a column. What it multiplies with are the rows'
// factors times their scales, rounded to 16 bits: to units of a power of two, of which the largest of all the
// rows in a block is at least 16383.
template <int kPairs>
class IntegerSums {
 public:
  static constexpr int kRows = 2 * kPairs;
  // A vector of nibbles. In the sums, a panel's columns lie as its words meet them.
  static constexpr int64_t kPanelColumns = 8 * LanesF();

  // Adds the rows' first columns, whole panels; factors[kRows]. `next` are as many rows that are read
  // afterwards.
  static void Add(const uint8_t* const* rows, const uint8_t* const* next, const float* factors, int64_t n,
                  float* sums) {
    const int64_t whole = n / kPanelColumns * kPanelColumns;
    ReadAhead<WeightType::kQ4_0, kRows> ahead(rows, next, n);
    for (int64_t begin = 0; begin < whole; begin += kGroupColumns) {
      const int64_t end = std::min(whole, begin + kGroupColumns);
      const Coefficients coefficients(rows, factors, begin, n);
      ahead.Enter(begin);
      for (int64_t column = begin; column < end; column += kPanelColumns) {
        if (column % kLineColumns == 0) ahead.template Advance<kLineColumns>();
        AddPanel(rows, column, coefficients, (column - begin) / kBlockColumns, sums + column);
      }
    }
  }

 private:
  static constexpr int64_t kLineColumns = 2 * kLine;

  // Of a group's blocks.
  class Coefficients {
   public:
    HWY_INLINE Coefficients(const uint8_t* const* rows, const float* factors, int64_t begin, int64_t n) {
      HWY_UNROLL(2)
      for (int64_t i = 0; i < kGroupBlocks; i += LanesF()) Fill(rows, factors, begin / kBlockColumns, i, n);
    }

    // For a panel's lanes, from `block` of the group on.
    HWY_INLINE VWords Pair(int pair, int64_t block) const {
      return hn::BitCast(DWords(), Spread(DI32(), pairs_[pair] + block));
    }
    // What nibbles count from: -8 times the sum of the rows' integers.
    HWY_INLINE VI32 Start(int64_t block) const { return Spread(DI32(), starts_ + block); }
    HWY_INLINE VF Units(int64_t block) const { return Spread(DF(), units_ + block); }

   private:
    static constexpr int64_t kGroupBlocks = kGroupColumns / kBlockColumns;

    HWY_INLINE void Fill(const uint8_t* const* rows, const float* factors, int64_t first, int64_t i,
                         int64_t n) {
      const DF d;
      const DI32 di;
      const int64_t scales = n / 2;
      const int64_t end = PackedBytes(n);
      VF products[kRows];
      VI32 most = hn::Zero(di);
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        const VF of_row = LoadScales(rows[r] + scales + 2 * (first + i), rows[r] + end);
        products[r] = hn::Mul(of_row, hn::Set(d, factors[r]));
        // Magnitudes order like their bits, NaN last.
        most = hn::Max(most, hn::BitCast(di, hn::Abs(products[r])));
      }
      // 2^(exponent - 14), by which less than 2^15 is left of the largest, and its inverse; both moved by a
      // trifle, so that no integer rounds to 2^15. Blocks whose inverse F32 does not have become zeros.
      const auto vanishes = hn::Lt(most, hn::BitCast(di, hn::Set(d, 0x1p-100f)));
      const auto broken = hn::Gt(most, hn::Set(di, kInfinity - 1));
      const VI32 exact = hn::Sub(hn::And(most, hn::Set(di, kInfinity)), hn::Set(di, 14 << 23));
      const VF unit = hn::Mul(hn::BitCast(d, exact), hn::Set(d, 32768.0f / 32767.0f));
      const VF inverse =
          hn::Mul(hn::BitCast(d, hn::Sub(hn::Set(di, 254 << 23), exact)), hn::Set(d, 32767.0f / 32768.0f));
      const VF kept_inverse = hn::IfThenZeroElse(hn::RebindMask(d, vanishes), inverse);
      const VF kept_unit = hn::IfThenZeroElse(hn::RebindMask(d, vanishes), unit);
      hn::Store(hn::IfThenElse(hn::RebindMask(d, broken), hn::BitCast(d, most), kept_unit), d, units_ + i);
      VI32 start = hn::Zero(di);
      HWY_UNROLL(4)
      for (int p = 0; p < kPairs; ++p) {
        const VI32 even = hn::NearestInt(hn::Mul(products[2 * p], kept_inverse));
        const VI32 odd = hn::NearestInt(hn::Mul(products[2 * p + 1], kept_inverse));
        const VI32 pair = hn::BitCast(
            di, hn::OddEven(hn::BitCast(DWords(), hn::ShiftLeft<16>(odd)), hn::BitCast(DWords(), even)));
        start = AddPairs(start, hn::BitCast(DWords(), pair), hn::Set(DWords(), -8));
        hn::Store(pair, di, pairs_[p] + i);
      }
      hn::Store(start, di, starts_ + i);
    }

    // A 128-bit block of the panel has the nibbles of one block of weights.
    template <class D>
    static HWY_INLINE hn::Vec<D> Spread(D d, const hn::TFromD<D>* from) {
      alignas(64) static constexpr int32_t kBlockOfLane[16] = {0, 0, 0, 0, 1, 1, 1, 1,
                                                               2, 2, 2, 2, 3, 3, 3, 3};
      return hn::TableLookupLanes(hn::LoadDup128(d, from), hn::SetTableIndices(d, kBlockOfLane));
    }

    static constexpr int32_t kInfinity = 0x7f800000;
    static HWY_INLINE int64_t PackedBytes(int64_t n) { return (n / kBlockColumns * 18 + 63) / 64 * 64; }

    // Loading four blocks where a panel has two reads past the last.
    static constexpr int64_t kRoom = kGroupBlocks + 16;
    HWY_ALIGN int32_t pairs_[kPairs][kRoom];
    HWY_ALIGN int32_t starts_[kRoom];
    HWY_ALIGN float units_[kRoom];
  };

  static HWY_INLINE void AddPanel(const uint8_t* const* rows, int64_t column,
                                  const Coefficients& coefficients, int64_t block, float* sums) {
    const DBytes d;
    const DWords dw;
    // The first and the second half of each block's bytes, of which words have nibbles worth 1, 16 and 256;
    // the last is shifted down.
    const VI32 start = coefficients.Start(block);
    VI32 integers[2][4];
    HWY_UNROLL(2)
    for (int half = 0; half < 2; ++half) {
      integers[half][0] = start;
      integers[half][1] = hn::ShiftLeft<4>(start);
      integers[half][2] = hn::ShiftLeft<8>(start);
      integers[half][3] = start;
    }
    HWY_UNROLL(4)
    for (int p = 0; p < kPairs; ++p) {
      const auto even = hn::BitCast(dw, hn::Load(d, rows[2 * p] + column / 2));
      const auto odd = hn::BitCast(dw, hn::Load(d, rows[2 * p + 1] + column / 2));
      const VWords pair = coefficients.Pair(p, block);
      AddNibbles(hn::InterleaveLower(dw, even, odd), pair, integers[0]);
      AddNibbles(hn::InterleaveUpper(dw, even, odd), pair, integers[1]);
    }
    const VF units = coefficients.Units(block);
    const VF units_of[4] = {units, hn::Mul(units, hn::Set(DF(), 1.0f / 16)),
                            hn::Mul(units, hn::Set(DF(), 1.0f / 256)), units};
    HWY_UNROLL(2)
    for (int half = 0; half < 2; ++half) {
      HWY_UNROLL(4)
      for (int k = 0; k < 4; ++k) {
        float* const to = sums + (4 * half + k) * LanesF();
        const VF added = hn::ConvertTo(DF(), integers[half][k]);
        hn::StoreU(hn::MulAdd(added, units_of[k], hn::LoadU(DF(), to)), DF(), to);
      }
    }
  }

  // At most 8 * 15 * 256 * 32767 by magnitude on the way.
  static HWY_INLINE void AddNibbles(VWords words, VWords pair, VI32 (&integers)[4]) {
    integers[0] = AddPairs(integers[0], hn::And(words, hn::Set(DWords(), 0xf)), pair);
    integers[1] = AddPairs(integers[1], hn::And(words, hn::Set(DWords(), 0xf0)), pair);
    integers[2] = AddPairs(integers[2], hn::And(words, hn::Set(DWords(), 0xf00)), pair);
    integers[3] = AddPairs(integers[3], ShiftDown(words), pair);
  }
  static HWY_INLINE VWords ShiftDown(VWords words) {
    const hn::Repartition<uint16_t, DF> d;
    return hn::BitCast(DWords(), hn::ShiftRight<12>(hn::BitCast(d, words)));
  }
};

// Where a column of a panel lies in its sums.
constexpr std::array<int32_t, 8 * LanesF()> PlacesOfColumns() {
  std::array<int32_t, 8 * LanesF()> places = {};
  for (int32_t c = 0; c < 8 * LanesF(); ++c) {
    const int32_t byte = c % 16;
    const int32_t nibble = byte % 2 * 2 + c / 16 % 2;
    places[c] = static_cast<int32_t>((byte / 8 * 4 + nibble) * LanesF()) + c / 32 * 4 + byte % 8 / 2;
  }
  return places;
}

// Brings the sums of whole panels into the order of their columns.
inline void OrderIntegerSums(int64_t n, float* sums) {
  alignas(64) static constexpr std::array<int32_t, 8 * LanesF()> kPlaces = PlacesOfColumns();
  constexpr int64_t kColumns = IntegerSums<1>::kPanelColumns;
  for (int64_t column = 0; column + kColumns <= n; column += kColumns) {
    HWY_ALIGN float panel[kColumns];
    std::copy_n(sums + column, kColumns, panel);
    for (int64_t i = 0; i < kColumns; i += LanesF()) {
      hn::StoreU(hn::GatherIndex(DF(), panel, hn::Load(DI32(), kPlaces.data() + i)), DF(), sums + column + i);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#endif  // ISOTHERM_COMMON_KERNELS_INTEGER_SUMS_INL_H_
