// Products of block-quantised rows in integers. A vector is rounded once for all rows, to 16 bits a value
// (block_units-inl.h). Products of integers and their sums within a lane and a block are exact; they are
// converted to F32, multiplied by the weights' scale * unit, which is rounded, and added to the lane's sum
// over all blocks.

#if defined(ISOTHERM_COMMON_KERNELS_INTEGER_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_INTEGER_PRODUCTS_INL_H_
#undef ISOTHERM_COMMON_KERNELS_INTEGER_PRODUCTS_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_INTEGER_PRODUCTS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "common/base/round_up.h"
#include "common/kernels/block_units-inl.h"
#include "common/kernels/decode-inl.h"
#include "common/kernels/integer_blocks-inl.h"
#include "common/kernels/read_ahead-inl.h"
#include "common/kernels/row_kernels.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

// A prepared vector is its panels, then its units [blocks], as many as fill whole lines.
template <WeightType kType>
class IntegerProducts {
 public:
  static int64_t InputBytes(int64_t n) { return PanelBytes(n) + UnitBytes(n); }

  static void Prepare(const float* x, int64_t n, uint8_t* input) {
    // There is room for the units of whole groups.
    auto* const units = reinterpret_cast<float*>(input + PanelBytes(n));
    for (int64_t begin = 0; begin < n; begin += kGroupColumns) {
      const int64_t count = std::min(n - begin, kGroupColumns);
      const float* group = x + begin;
      PrefetchColumns(group + count, std::min(n - begin - count, kGroupColumns));
      float padded[kGroupColumns];
      if (count < kGroupColumns) {
        std::fill(std::copy_n(group, count, padded), std::end(padded), 0.0f);
        group = padded;
      }
      alignas(64) float inverses[kGroupBlocks];
      FindUnits(group, units + begin / kBlockColumns, inverses);
      for (int64_t column = 0; column < count; column += Blocks::kPanelColumns) {
        Blocks::Round(group + column, inverses + column / kBlockColumns, input);
        input += Blocks::kPanelBytes;
      }
    }
  }

  // y[v * ldy + r] = rows[r] . vector v for one tile; `next` are as many rows that follow it.
  template <int kRows, int kVectors>
  static void MultiplyTile(const uint8_t* const* rows, const uint8_t* const* next, const RowInputs& inputs,
                           int64_t n, float* y, int64_t ldy) {
    const DF d;
    ReadAhead<kType, kRows> ahead(rows, next, n);
    GroupScales scales[kRows][kVectors];
    VF sums[kRows][kVectors];
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        scales[r][v].Open(rows[r], Bytes::Quants(n), n);
        sums[r][v] = hn::Zero(d);
      }
    }
    const uint8_t* panel = inputs.data;
    for (int64_t begin = 0; begin < n; begin += kGroupColumns) {
      const int64_t end = std::min(n, begin + kGroupColumns);
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        HWY_UNROLL(4)
        for (int v = 0; v < kVectors; ++v) scales[r][v].Enter(begin, end, Units(inputs, v, n));
      }
      ahead.Enter(begin);
      // Whole lines of weights, each asked for once.
      int64_t column = begin;
      for (; column + kLineColumns <= end; column += kLineColumns) {
        ahead.template Advance<kLineColumns>();
        HWY_UNROLL(2)
        for (int64_t i = 0; i < kLineColumns; i += Blocks::kPanelColumns, panel += Blocks::kPanelBytes) {
          MultiplyPanel(rows, panel, inputs.stride, scales, begin, column + i, sums);
        }
      }
      for (; column < end; column += Blocks::kPanelColumns, panel += Blocks::kPanelBytes) {
        MultiplyPanel(rows, panel, inputs.stride, scales, begin, column, sums);
      }
    }
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) y[v * ldy + r] = hn::GetLane(hn::SumOfLanes(d, sums[r][v]));
    }
  }

 private:
  using Blocks = IntegerBlocks<kType>;
  using Bytes = ColumnBytes<kType>;
  static constexpr int64_t kLineColumns =
      kLine * Blocks::kPanelColumns / Bytes::Quants(Blocks::kPanelColumns);

  // Adds the products of one panel's columns, which begin at `column` of the row; `panel` is the first
  // vector's.
  template <int kRows, int kVectors>
  static HWY_INLINE void MultiplyPanel(const uint8_t* const* rows, const uint8_t* panel, int64_t stride,
                                       const GroupScales (&scales)[kRows][kVectors], int64_t group_begin,
                                       int64_t column, VF (&sums)[kRows][kVectors]) {
    HWY_UNROLL(2)
    for (int64_t part = 0; part < Blocks::kParts; ++part) {
      typename Blocks::Input input[kVectors];
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) input[v] = Blocks::LoadInput(panel + v * stride, part);
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        const auto weights = Blocks::LoadWeights(rows[r] + Bytes::Quants(column), part);
        HWY_UNROLL(4)
        for (int v = 0; v < kVectors; ++v) {
          const VF products = hn::ConvertTo(DF(), Blocks::Multiply(weights, input[v]));
          sums[r][v] =
              hn::MulAdd(products, Blocks::Scales(scales[r][v], column - group_begin, part), sums[r][v]);
        }
      }
    }
  }

  // Of a vector that other threads wrote: 8192 columns from another core's cache, asked for a group ahead,
  // took 3.7 us where 5.0 without (Q4_0, a Xeon with AVX-512; 1.2 us where this core wrote them).
  static HWY_INLINE void PrefetchColumns(const float* x, int64_t count) {
    PrefetchBytes(reinterpret_cast<const uint8_t*>(x), reinterpret_cast<const uint8_t*>(x + count));
  }

  static int64_t PanelBytes(int64_t n) {
    return base::RoundUp(n, Blocks::kPanelColumns) / Blocks::kPanelColumns * Blocks::kPanelBytes;
  }
  static int64_t UnitBytes(int64_t n) {
    return base::RoundUp(n, kGroupColumns) / kBlockColumns * static_cast<int64_t>(sizeof(float));
  }
  static HWY_INLINE const float* Units(const RowInputs& inputs, int64_t vector, int64_t n) {
    return reinterpret_cast<const float*>(inputs.data + vector * inputs.stride + PanelBytes(n));
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#endif  // ISOTHERM_COMMON_KERNELS_INTEGER_PRODUCTS_INL_H_
