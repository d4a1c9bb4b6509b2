#ifndef ISOTHERM_COMMON_KERNELS_SHARED_ROWS_H_
#define ISOTHERM_COMMON_KERNELS_SHARED_ROWS_H_

#include <cstdint>

#include "common/kernels/packed_row.h"
#include "common/kernels/row_kernels.h"

// Packed weight rows with a few vectors, of which each row serves some: the sparse FFN of a few tokens, which
// mostly want different neurons. The vectors are taken a group of columns at a time, so that theirs stay in
// the first-level cache while the rows pass by.
namespace isotherm::kernels {

struct RowUses {
  int64_t count = 0;                     // of rows
  const uint8_t* const* rows = nullptr;  // [count]
  // [count]: the head of next[i] is asked for while the tail of rows[i] is computed with. Any row will do,
  // the same one if nothing follows.
  const uint8_t* const* next = nullptr;
  // [count]: row i serves the vectors vectors[ends[i - 1]] (the first row: vectors[0]) to vectors[ends[i] -
  // 1], which are different. The last is at most kMostRowUses, and so is count.
  const int32_t* ends = nullptr;
  const int32_t* vectors = nullptr;

  int64_t Begin(int64_t i) const { return i == 0 ? 0 : ends[i - 1]; }
};

// The partial sums of so many products fill half of the first-level cache with AVX-512.
inline constexpr int64_t kMostRowUses = 128;

struct SharedRowKernels {
  // products[u] = row . vector vectors[u] of `inputs`, for each use u of every row; bit-equal to
  // RowKernels::mat_mul.
  void (*multiply)(const RowUses& uses, const RowInputs& inputs, int64_t n, float* products);
  // y[vectors[u] * ldy + c] += factors[u] * row[c], c < n, for each use u of one row after another; bit-equal
  // to RowKernels::add_scaled. Null for types whose rows are rounded together.
  void (*add_scaled)(const RowUses& uses, const float* factors, int64_t n, float* y, int64_t ldy);
};

// Resolve once, outside loops.
const SharedRowKernels& GetSharedRowKernels(WeightType type);

}  // namespace isotherm::kernels

#endif  // ISOTHERM_COMMON_KERNELS_SHARED_ROWS_H_
