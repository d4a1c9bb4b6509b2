#include "common/kernels/tolerance.h"

#include <cmath>

#include "common/kernels/row_kernels.h"

namespace isotherm::kernels {
namespace {

constexpr double kConfidence = 4.0;

}  // namespace

double UnitRoundOff() { return 0x1p-24; }

double DotTolerance(int64_t k, double norm_a, double norm_b) {
  return kConfidence * UnitRoundOff() * std::sqrt(static_cast<double>(k)) * norm_a * norm_b;
}

double DotTolerance(WeightType type, int64_t k, double norm_row, double norm_x) {
  const double sums = DotTolerance(k, norm_row, norm_x);
  if (GetRowKernels(type).input_bytes(k) == 0) return sums;
  return sums + kConfidence / std::sqrt(12.0) / 32639 * norm_row * norm_x;
}

double SumTolerance(WeightType type, int64_t rows, double most) {
  if (GetRowKernels(type).rows_together == 1) return 0;
  return kConfidence / std::sqrt(12.0) / 16383 * 8 / 7 * std::sqrt(static_cast<double>(rows)) * most;
}

double QuantizationError(WeightType type) {
  // |rounded - value| / |value| over 3 * 10^6 standard normal values, Euclidean norms. Of types with
  // minima and of K types with a plain quantiser of minimum and maximum (absolute maximum for Q5_0 and Q6_K);
  // writers that search for better scales stay below.
  switch (type) {
    case WeightType::kF32:
      return 0.0;
    case WeightType::kF16:
      return 2.1e-4;
    case WeightType::kBF16:
      return 1.7e-3;
    case WeightType::kQ8_0:
      return 5.4e-3;
    case WeightType::kQ4_0:
      return 8.6e-2;
    case WeightType::kQ4_K:
    case WeightType::kQ4_1:
      return 7.9e-2;
    case WeightType::kQ5_0:
      return 4.3e-2;
    case WeightType::kQ5_1:
    case WeightType::kQ5_K:
      return 3.9e-2;
    case WeightType::kQ6_K:
      return 1.9e-2;
  }
  return 0.0;
}

bool Within(double computed, double exact, double bound) {
  if (std::isinf(computed) || std::isinf(exact)) return computed == exact;
  return std::abs(computed - exact) <= bound;  // False for NaN.
}

}  // namespace isotherm::kernels
