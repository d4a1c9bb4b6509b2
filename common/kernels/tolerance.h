#ifndef ISOTHERM_COMMON_KERNELS_TOLERANCE_H_
#define ISOTHERM_COMMON_KERNELS_TOLERANCE_H_

#include <cstdint>

#include "common/kernels/packed_row.h"

// The one place where "close enough" is computed.
namespace isotherm::kernels {

// Unit round-off of F32 arithmetic, 2^-24.
double UnitRoundOff();

// Bound on |computed - exact| of a dot product of length k accumulated in F32: c * u * sqrt(k) * |a| * |b|
// with c = 4 (statistical form of Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Norms
// are Euclidean.
double DotTolerance(int64_t k, double norm_a, double norm_b);

// Root-mean-square relative error of rounding normally distributed weights to the type; 0 for F32.
double QuantizationError(WeightType type);

// False for NaN, for infinities that differ and for differences over the bound.
bool Within(double computed, double exact, double bound);

}  // namespace isotherm::kernels

#endif  // ISOTHERM_COMMON_KERNELS_TOLERANCE_H_
