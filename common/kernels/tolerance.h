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

// The same for the product of a row of that type with a vector: where products are integer (row_kernels.h),
// with what rounding the vector adds. Its errors are uniform within a unit, of a variance of 1/12, and a
// block's unit is at most 1/32639 of the norm of the vector's block: c / sqrt(12) / 32639 * |row| * |x|.
double DotTolerance(WeightType type, int64_t k, double norm_row, double norm_x);

// Bound on |computed - exact| of sums of rows times factors (row_kernels.h) in one column, beside what a dot
// product of the factors with the column's weights has; 0 where rows are not rounded together. `most` is the
// largest |factor * weight| of all the rows in the column's block. Their errors are uniform within a unit, of
// which the largest |factor * scale| is at least 16383, times a quant, which is at most 8 and for the block's
// largest weight at least 7: c / sqrt(12) / 16383 * 8 / 7 * sqrt(rows) * most.
double SumTolerance(WeightType type, int64_t rows, double most);

// Root-mean-square relative error of rounding normally distributed weights to the type; 0 for F32.
double QuantizationError(WeightType type);

// False for NaN, for infinities that differ and for differences over the bound.
bool Within(double computed, double exact, double bound);

}  // namespace isotherm::kernels

#endif  // ISOTHERM_COMMON_KERNELS_TOLERANCE_H_
