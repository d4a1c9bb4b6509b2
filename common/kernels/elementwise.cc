#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "common/kernels/ops.h"

#undef HWY_TARGET_INCLUDE
// clang-format off: foreach_target.h comes before everything that is compiled for each target.
#define HWY_TARGET_INCLUDE "common/kernels/elementwise.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// clang-format on
#include "common/kernels/exp-inl.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DD = hn::ScalableTag<double>;
using DHalf = hn::Rebind<float, DD>;  // As many floats as a vector of doubles holds.

inline constexpr int64_t kFloats = HWY_LANES(float);
inline constexpr int64_t kDoubles = HWY_LANES(double);

// Lanes of `n` elements from `i` on that exist.
template <class D>
HWY_INLINE auto FirstLeft(D d, int64_t i, int64_t n) {
  return hn::FirstN(d, static_cast<size_t>(n - i));
}

// update(x[i], y[i]) for every i, into y.
template <class Update>
HWY_INLINE void UpdateEach(const float* x, float* y, int64_t n, const Update& update) {
  const DF d;
  int64_t i = 0;
  for (; i + kFloats <= n; i += kFloats)
    hn::StoreU(update(hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, y + i);
  if (i == n) return;
  const auto first = FirstLeft(d, i, n);
  hn::BlendedStore(update(hn::MaskedLoad(first, d, x + i), hn::MaskedLoad(first, d, y + i)), first, d, y + i);
}

struct Addition {
  HWY_INLINE hn::Vec<DF> operator()(hn::Vec<DF> x, hn::Vec<DF> y) const { return hn::Add(x, y); }
};

struct SiluProduct {
  HWY_INLINE hn::Vec<DF> operator()(hn::Vec<DF> up, hn::Vec<DF> gate) const {
    const DF d;
    // exp(80) is finite and makes silu vanish against anything.
    const auto power = hn::Min(hn::Set(d, 80.0f), hn::Neg(gate));
    const auto silu = hn::Div(gate, hn::Add(hn::Set(d, 1.0f), ExpKeepingNaN(d, power)));
    return hn::Mul(silu, up);
  }
};

void AddTo(const float* x, float* y, int64_t n) { UpdateEach(x, y, n, Addition()); }
void SiluMulTo(float* gate, const float* up, int64_t n) { UpdateEach(up, gate, n, SiluProduct()); }

void SumTo(const float* const* rows, int64_t num_rows, int64_t n, float* y) {
  const DF d;
  for (int64_t i = 0; i < n; i += kFloats) {
    const auto first = FirstLeft(d, i, n);
    auto sum = num_rows == 0 ? hn::Zero(d) : hn::MaskedLoad(first, d, rows[0] + i);
    for (int64_t r = 1; r < num_rows; ++r) sum = hn::Add(sum, hn::MaskedLoad(first, d, rows[r] + i));
    hn::BlendedStore(sum, first, d, y + i);
  }
}

// y += scale * (x + bias).
void AddScaledTo(const float* x, const float* bias, float scale, float* y, int64_t n) {
  const DF d;
  const auto factor = hn::Set(d, scale);
  for (int64_t i = 0; i < n; i += kFloats) {
    const auto first = FirstLeft(d, i, n);
    auto value = hn::MaskedLoad(first, d, x + i);
    if (bias != nullptr) value = hn::Add(value, hn::MaskedLoad(first, d, bias + i));
    hn::BlendedStore(hn::MulAdd(value, factor, hn::MaskedLoad(first, d, y + i)), first, d, y + i);
  }
}

// Sum in F64.
HWY_INLINE double SumOf(const float* x, int64_t n) {
  const DD d;
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kDoubles) {
    sum = hn::Add(sum, hn::PromoteTo(d, hn::MaskedLoad(FirstLeft(DHalf(), i, n), DHalf(), x + i)));
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// Sum of the squares of x - mean in F64.
HWY_INLINE double SquaredDeviation(const float* x, double mean, int64_t n) {
  const DD d;
  const auto center = hn::Set(d, mean);
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kDoubles) {
    const auto value = hn::PromoteTo(d, hn::MaskedLoad(FirstLeft(DHalf(), i, n), DHalf(), x + i));
    const auto deviation = hn::IfThenElseZero(FirstLeft(d, i, n), hn::Sub(value, center));
    sum = hn::MulAdd(deviation, deviation, sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// The mean is subtracted in F64: it may be far larger than what is left.
void LayerNormTo(const float* x, const float* weight, const float* bias, float epsilon, int64_t n,
                 float* out) {
  const DD d;
  const double mean = SumOf(x, n) / static_cast<double>(n);
  const double variance = SquaredDeviation(x, mean, n) / static_cast<double>(n);
  const auto center = hn::Set(d, mean);
  const auto scale = hn::Set(d, 1.0 / std::sqrt(variance + epsilon));
  for (int64_t i = 0; i < n; i += kDoubles) {
    const auto first = FirstLeft(DHalf(), i, n);
    const auto load = [&](const float* from)
                          HWY_ATTR { return hn::PromoteTo(d, hn::MaskedLoad(first, DHalf(), from + i)); };
    auto value = hn::Mul(hn::Mul(hn::Sub(load(x), center), scale), load(weight));
    if (bias != nullptr) value = hn::Add(value, load(bias));
    hn::BlendedStore(hn::DemoteTo(DHalf(), value), first, DHalf(), out + i);
  }
}

// Sum of squares in F64: products of two floats are exact there.
HWY_INLINE double SquaredNorm(const float* x, int64_t n) {
  const DD d;
  auto even = hn::Zero(d);
  auto odd = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * kDoubles <= n; i += 2 * kDoubles) {
    const auto a = hn::PromoteTo(d, hn::LoadU(DHalf(), x + i));
    const auto b = hn::PromoteTo(d, hn::LoadU(DHalf(), x + i + kDoubles));
    even = hn::MulAdd(a, a, even);
    odd = hn::MulAdd(b, b, odd);
  }
  for (; i < n; i += kDoubles) {
    const auto a = hn::PromoteTo(d, hn::MaskedLoad(FirstLeft(DHalf(), i, n), DHalf(), x + i));
    even = hn::MulAdd(a, a, even);
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
}

void RmsNormTo(const float* x, const float* weight, float epsilon, int64_t n, float* out) {
  const DF d;
  const double mean = SquaredNorm(x, n) / static_cast<double>(n);
  const auto scale = hn::Set(d, static_cast<float>(1.0 / std::sqrt(mean + epsilon)));
  int64_t i = 0;
  for (; i + kFloats <= n; i += kFloats) {
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), scale), hn::LoadU(d, weight + i)), d, out + i);
  }
  if (i == n) return;
  const auto first = FirstLeft(d, i, n);
  const auto scaled = hn::Mul(hn::MaskedLoad(first, d, x + i), scale);
  hn::BlendedStore(hn::Mul(scaled, hn::MaskedLoad(first, d, weight + i)), first, d, out + i);
}

// Cosines and sines of position * frequency[i] for kDoubles pairs, in F64: at long contexts the angle itself
// needs more than F32, and Highway's Cos and Sin want arguments near zero.
HWY_INLINE void Rotations(float position, const float* frequency, int64_t pairs, float* cosines,
                          float* sines) {
  const DD d;
  constexpr double kTurn = 2 * std::numbers::pi;
  // What 2 pi has beyond F64.
  constexpr double kTurnRest = 2.4492935982947064e-16;
  const auto frequencies =
      hn::MaskedLoad(hn::FirstN(DHalf(), static_cast<size_t>(pairs)), DHalf(), frequency);
  const auto angle = hn::Mul(hn::PromoteTo(d, frequencies), hn::Set(d, position));
  const auto turns = hn::Round(hn::Mul(angle, hn::Set(d, 1 / kTurn)));
  auto reduced = hn::NegMulAdd(turns, hn::Set(d, kTurn), angle);
  reduced = hn::NegMulAdd(turns, hn::Set(d, kTurnRest), reduced);
  hn::StoreU(hn::DemoteTo(DHalf(), hn::Cos(d, reduced)), DHalf(), cosines);
  hn::StoreU(hn::DemoteTo(DHalf(), hn::Sin(d, reduced)), DHalf(), sines);
}

void RopeInPlace(const RopeTable& table, float position, int64_t heads, int64_t head_dim, float* vectors) {
  float cosines[kDoubles];
  float sines[kDoubles];
  for (int64_t begin = 0; begin < table.pairs; begin += kDoubles) {
    const int64_t count = std::min(kDoubles, table.pairs - begin);
    Rotations(position, table.inverse_frequency + begin, count, cosines, sines);
    for (int64_t head = 0; head < heads; ++head) {
      float* const firsts = vectors + head * head_dim + table.step * begin;
      float* const seconds = firsts + table.gap;
      for (int64_t i = 0; i < count; ++i) {
        const float a = firsts[table.step * i];
        const float b = seconds[table.step * i];
        firsts[table.step * i] = a * cosines[i] - b * sines[i];
        seconds[table.step * i] = a * sines[i] + b * cosines[i];
      }
    }
  }
}

// The largest value; NaNs are passed over, -infinity where there is nothing else.
HWY_INLINE float Largest(const float* x, int64_t n) {
  const DF d;
  const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  auto max = lowest;
  int64_t i = 0;
  for (; i + kFloats <= n; i += kFloats) {
    const auto value = hn::LoadU(d, x + i);
    max = hn::IfThenElse(hn::Gt(value, max), value, max);
  }
  if (i < n) {
    const auto first = FirstLeft(d, i, n);
    const auto value = hn::IfThenElse(first, hn::MaskedLoad(first, d, x + i), lowest);
    max = hn::IfThenElse(hn::Gt(value, max), value, max);
  }
  return hn::GetLane(hn::MaxOfLanes(d, max));
}

double LogSumExpOf(const float* x, int64_t n) {
  const DD d;
  const float largest = Largest(x, n);
  if (std::isinf(largest)) {
    return std::any_of(x, x + n, [](float value) { return std::isnan(value); }) ? std::nan("") : largest;
  }
  const auto max = hn::Set(d, static_cast<double>(largest));
  const auto floor = hn::Set(d, -700.0);  // exp(-700) is 0 beside exp(0).
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kDoubles) {
    const auto first = FirstLeft(d, i, n);
    const auto floats = hn::MaskedLoad(FirstLeft(DHalf(), i, n), DHalf(), x + i);
    const auto difference = hn::Sub(hn::PromoteTo(d, floats), max);
    const auto power = hn::IfThenElse(hn::Lt(difference, floor), floor, difference);
    sum = hn::Add(sum, hn::IfThenElseZero(first, ExpKeepingNaN(d, power)));
  }
  return largest + std::log(hn::GetLane(hn::SumOfLanes(d, sum)));
}

int64_t ArgMaxOf(const float* x, int64_t n) {
  const DF d;
  const float largest = Largest(x, n);
  const auto max = hn::Set(d, largest);
  int64_t i = 0;
  for (; i + kFloats <= n; i += kFloats) {
    const intptr_t found = hn::FindFirstTrue(d, hn::Eq(hn::LoadU(d, x + i), max));
    if (found >= 0) return i + found;
  }
  const float* const found = std::find(x + i, x + n, largest);
  return found == x + n ? 0 : found - x;
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm::kernels {

HWY_EXPORT(RmsNormTo);
HWY_EXPORT(RopeInPlace);
HWY_EXPORT(LayerNormTo);
HWY_EXPORT(SumTo);
HWY_EXPORT(AddTo);
HWY_EXPORT(AddScaledTo);
HWY_EXPORT(SiluMulTo);
HWY_EXPORT(LogSumExpOf);
HWY_EXPORT(ArgMaxOf);

void RmsNorm(const float* x, const float* weight, float epsilon, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(RmsNormTo)(x, weight, epsilon, n, out);
}

void LayerNorm(const float* x, const float* weight, const float* bias, float epsilon, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(LayerNormTo)(x, weight, bias, epsilon, n, out);
}

void Rope(const RopeTable& table, float position, int64_t heads, int64_t head_dim, float* vectors) {
  HWY_DYNAMIC_DISPATCH(RopeInPlace)(table, position, heads, head_dim, vectors);
}

void Sum(const float* const* rows, int64_t num_rows, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(SumTo)(rows, num_rows, n, y);
}
void Add(const float* x, float* y, int64_t n) { HWY_DYNAMIC_DISPATCH(AddTo)(x, y, n); }
void AddScaled(const float* x, const float* bias, float scale, float* y, int64_t n) {
  HWY_DYNAMIC_DISPATCH(AddScaledTo)(x, bias, scale, y, n);
}
void SiluMul(float* gate, const float* up, int64_t n) { HWY_DYNAMIC_DISPATCH(SiluMulTo)(gate, up, n); }

double LogSumExp(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(LogSumExpOf)(x, n); }
int64_t ArgMax(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(ArgMaxOf)(x, n); }

}  // namespace isotherm::kernels
#endif  // HWY_ONCE
