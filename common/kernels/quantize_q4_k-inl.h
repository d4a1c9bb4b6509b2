// F32 values to superblocks of Q4_K, which stand for w = s q - m with 4-bit q, and for each part of 32
// columns s = d ls and m = dm lm with 6-bit integers ls, lm and F16 numbers d, dm of the superblock.
//
// The sum of squared errors is made small in three steps:
//   1. For each part alone: candidates for q divide its range into a few more or fewer than 15 steps; for
//      each, (s, m) is the line of least squares through (q_i, x_i),
//        s = (n S_qx - S_q S_x) / (n S_qq - S_q^2), m = (s S_q - S_x) / n, or m = 0, s = S_qx / S_qq
//      where that m would be negative; the candidate of least error stays.
//   2. d = max s / 63, dm = max m / 63, rounded to F16.
//   3. ls is the nearest integer or one beside it, each with the best m for the q it gives,
//        m = (s S_q - S_x) / n, rounded to lm; what has the least error with q anew is written.
//
// Relative error of normally distributed values: 7.1 % (Q4_0: 8.6 %; rounding to minimum and maximum: 7.8 %).

#if defined(ISOTHERM_COMMON_KERNELS_QUANTIZE_Q4_K_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_QUANTIZE_Q4_K_INL_H_
#undef ISOTHERM_COMMON_KERNELS_QUANTIZE_Q4_K_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_QUANTIZE_Q4_K_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/kernels/packed_row.h"
#include "common/kernels/unpack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

inline constexpr int kParts = 8;
inline constexpr float kMostQuant = 15;
inline constexpr float kMostFactor = 63;  // of ls and lm

// One part of a superblock: 32 values, and what sums over them are needed.
class Q4KPart {
 public:
  // w = scale * q - minimum; both at least 0.
  struct Line {
    float scale = 0;
    float minimum = 0;
  };
  struct Fit {
    Line line;
    float error = std::numeric_limits<float>::infinity();  // squared, less the sum of the values' squares
  };

  explicit HWY_INLINE Q4KPart(const float* values) : values_(values) {
    const DF d;
    auto sum = hn::Zero(d);
    auto low = hn::Zero(d);
    auto high = hn::Set(d, -std::numeric_limits<float>::infinity());
    for (int64_t i = 0; i < kBlockColumns; i += LanesF()) {
      const auto x = hn::LoadU(d, values + i);
      sum = hn::Add(sum, x);
      low = hn::Min(low, x);
      high = hn::Max(high, x);
    }
    sum_ = Total(sum);
    low_ = hn::GetLane(hn::MinOfLanes(d, low));
    high_ = hn::GetLane(hn::MaxOfLanes(d, high));
  }

  // Step 1.
  HWY_INLINE Line BestLine() const {
    constexpr float kFewestSteps = 13, kMostSteps = 16, kBetween = 0.375f;
    if (!(high_ > low_)) return {0, -low_};
    Fit best;
    for (float steps = kFewestSteps; steps <= kMostSteps; steps += kBetween) {
      const Sums sums = SumsOf({(high_ - low_) / steps, -low_});
      const Fit fit = Measure(LeastSquares(sums), sums);
      if (fit.error < best.error) best = fit;
    }
    return best.line;
  }

  // The best minimum for the values that quants of this line give.
  HWY_INLINE float BestMinimum(const Line& line) const {
    return std::max(0.0f, (line.scale * SumsOf(line).q - sum_) / kBlockColumns);
  }
  HWY_INLINE Fit Measure(const Line& line) const { return Measure(line, SumsOf(line)); }

  HWY_INLINE void Quantize(const Line& line, uint8_t* quants) const {
    for (int64_t i = 0; i < kBlockColumns; i += LanesF()) {
      hn::StoreU(hn::DemoteTo(DU8(), hn::ConvertTo(DI32(), Quants(line, i))), DU8(), quants + i);
    }
  }

 private:
  struct Sums {
    float q, qq, qx;
  };

  static HWY_INLINE float Total(VF v) { return hn::GetLane(hn::SumOfLanes(DF(), v)); }

  HWY_INLINE VF Quants(const Line& line, int64_t i) const {
    const DF d;
    const auto inverse = hn::Set(d, line.scale > 0 ? 1 / line.scale : 0.0f);
    const auto q = hn::Round(hn::Mul(hn::Add(hn::LoadU(d, values_ + i), hn::Set(d, line.minimum)), inverse));
    return hn::Min(hn::Max(q, hn::Zero(d)), hn::Set(d, kMostQuant));
  }

  HWY_INLINE Sums SumsOf(const Line& line) const {
    const DF d;
    auto sum_q = hn::Zero(d), sum_qq = hn::Zero(d), sum_qx = hn::Zero(d);
    for (int64_t i = 0; i < kBlockColumns; i += LanesF()) {
      const auto q = Quants(line, i);
      sum_q = hn::Add(sum_q, q);
      sum_qq = hn::MulAdd(q, q, sum_qq);
      sum_qx = hn::MulAdd(q, hn::LoadU(d, values_ + i), sum_qx);
    }
    return {Total(sum_q), Total(sum_qq), Total(sum_qx)};
  }

  HWY_INLINE Line LeastSquares(const Sums& sums) const {
    const float determinant = kBlockColumns * sums.qq - sums.q * sums.q;
    if (determinant > 0) {
      const float scale = (kBlockColumns * sums.qx - sums.q * sum_) / determinant;
      const float minimum = (scale * sums.q - sum_) / kBlockColumns;
      if (minimum >= 0) return {scale, minimum};
    }
    return {sums.qx / sums.qq, 0};
  }

  // Of quants with these sums, not of those the line itself would give.
  HWY_INLINE Fit Measure(const Line& line, const Sums& sums) const {
    const auto [s, m] = line;
    const float error =
        s * s * sums.qq + kBlockColumns * m * m + 2 * (m * sum_ - s * sums.qx - s * m * sums.q);
    return {line, error};
  }

  const float* const values_;
  float sum_, low_, high_;
};

// Bits of scales and minima as ScalesAndMinima in unpack-inl.h reads them.
inline void StoreFactors(const uint8_t scales[kParts], const uint8_t minima[kParts], uint8_t out[12]) {
  for (int i = 0; i < 4; ++i) {
    out[i] = static_cast<uint8_t>(scales[i] | scales[i + 4] >> 4 << 6);
    out[4 + i] = static_cast<uint8_t>(minima[i] | minima[i + 4] >> 4 << 6);
    out[8 + i] = static_cast<uint8_t>((scales[i + 4] & 15) | (minima[i + 4] & 15) << 4);
  }
}

// The F16 number next to most / 63, as F32.
inline float SharedFactor(float most, uint8_t* out) {
  const uint16_t half = FloatToHalf(most / kMostFactor);
  std::memcpy(out, &half, sizeof(half));
  return HalfToFloat(half);
}

// 0 where the values were not finite.
inline float NearestFactor(float value, float shared) {
  const float factor = shared > 0 ? std::nearbyint(value / shared) : 0.0f;
  return factor > 0 ? std::min(factor, kMostFactor) : 0.0f;
}

HWY_INLINE void QuantizeSuperblock(const float* values, uint8_t* block) {
  Q4KPart::Line lines[kParts];
  Q4KPart::Line most;
  for (int p = 0; p < kParts; ++p) {
    lines[p] = Q4KPart(values + p * kBlockColumns).BestLine();
    most.scale = std::max(most.scale, lines[p].scale);
    most.minimum = std::max(most.minimum, lines[p].minimum);
  }
  const float d = SharedFactor(most.scale, block);
  const float dm = SharedFactor(most.minimum, block + 2);

  uint8_t scales[kParts], minima[kParts], quants[kParts * kBlockColumns];
  for (int p = 0; p < kParts; ++p) {
    const Q4KPart part(values + p * kBlockColumns);
    const float nearest = NearestFactor(lines[p].scale, d);
    const float nearest_minimum = NearestFactor(lines[p].minimum, dm);
    Q4KPart::Fit best = part.Measure({d * nearest, dm * nearest_minimum});
    scales[p] = static_cast<uint8_t>(nearest);
    minima[p] = static_cast<uint8_t>(nearest_minimum);
    for (float ls = std::max(nearest - 1, 0.0f); ls <= std::min(nearest + 1, kMostFactor); ++ls) {
      const float lm = NearestFactor(part.BestMinimum({d * ls, dm * nearest_minimum}), dm);
      const Q4KPart::Fit fit = part.Measure({d * ls, dm * lm});
      if (!(fit.error < best.error)) continue;
      best = fit;
      scales[p] = static_cast<uint8_t>(ls);
      minima[p] = static_cast<uint8_t>(lm);
    }
    part.Quantize(best.line, quants + p * kBlockColumns);
  }
  StoreFactors(scales, minima, block + 4);
  for (int64_t i = 0; i < kSuperblockColumns / 2; ++i) {
    const int64_t column = i / kBlockColumns * 2 * kBlockColumns + i % kBlockColumns;
    block[kScalesAndMinimaBytes + i] =
        static_cast<uint8_t>(quants[column] | quants[column + kBlockColumns] << 4);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#endif  // ISOTHERM_COMMON_KERNELS_QUANTIZE_Q4_K_INL_H_
