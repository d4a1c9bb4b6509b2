#ifndef ISOTHERM_COMMON_KERNELS_ROW_KERNELS_H_
#define ISOTHERM_COMMON_KERNELS_ROW_KERNELS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "common/kernels/packed_row.h"

// Products with packed weight rows and F32 vectors, for the instruction set of this CPU (Highway: AVX2,
// AVX-512, AVX-512 with VNNI). Accumulation is F32 in a fixed order that depends on the length alone: the
// result for one vector is the same, bit for bit, whatever else is computed beside it. Errors are within
// DotTolerance(type, ...) of tolerance.h.
namespace isotherm::kernels {

// Vectors as the products of a weight type read them (PrepareInputs): F32, or rounded to 16 bits a value for
// Q4_0 and Q8_0, whose products are integer.
struct RowInputs {
  const uint8_t* data = nullptr;
  int64_t stride = 0;  // bytes from one vector to the next

  RowInputs From(int64_t vector) const { return {data + vector * stride, stride}; }
};

// Lists of rows go on for so many entries: rows that are read after the call, which asks for their heads
// while it computes. Any rows do, the listed ones again if nothing follows.
inline constexpr int64_t kRowsAhead = 8;

inline constexpr int64_t kMostRowsTogether = 8;

struct RowKernels {
  // Bytes of a vector of n columns as products read it, a multiple of 64; 0 where they read F32 as it is.
  int64_t (*input_bytes)(int64_t n);
  // Writes so many bytes on a 64-byte boundary, for kernels of the same table. x need not be aligned.
  void (*prepare)(const float* x, int64_t n, uint8_t* input);
  // y[b * ldy + r] = sum_i row_r[i] * x_b[i], i < n, r < num_rows, b < batch, with row_r at rows + r * stride
  // and x_b vector b of `inputs`. Each row is read from memory once.
  void (*mat_mul)(const uint8_t* rows, int64_t stride, int64_t num_rows, const RowInputs& inputs,
                  int64_t batch, int64_t n, float* y, int64_t ldy);
  // The same with rows that lie anywhere: rows[num_rows + kRowsAhead]. They are read once for each two
  // vectors, so a list for more should fit the second-level cache.
  void (*mat_mul_listed)(const uint8_t* const* rows, int64_t num_rows, const RowInputs& inputs, int64_t batch,
                         int64_t n, float* y, int64_t ldy);
  // At most so many rows are added in one call where they are rounded together, which is for Q4_0. 1: any
  // number, each by itself.
  int64_t rows_together;
  // Sums of so many columns lie in an order that order_sums undoes; those of the columns after the last
  // multiple of it, in their own. 1: all of them do.
  int64_t panel_columns;
  // sums[i] += factors[r] * rows[r][i], i < n, r < num_rows. Each by itself: in turn, with one rounding each
  // and, for Q8_0, one of factor * scale, so that it is bit-equal to a call for every row. Together: in each
  // block of 32 columns the factors times the scales are rounded by at most 2^-15 of the largest one's
  // magnitude, what is left over is exact, and one addition to the sum is rounded. rows[num_rows +
  // kRowsAhead].
  void (*add_scaled)(const uint8_t* const* rows, int64_t num_rows, const float* factors, int64_t n,
                     float* sums);
  // Brings the sums of n columns, which begin with a panel, into the order of the columns. Null where they
  // are in it.
  void (*order_sums)(int64_t n, float* sums);
  // Asks for a row to be brought into the second-level cache.
  void (*prefetch)(const uint8_t* row, int64_t n);
  // out[i] = row[i].
  void (*unpack)(const uint8_t* row, int64_t n, float* out);
};

// Resolve once, outside loops.
const RowKernels& GetRowKernels(WeightType type);

// x[batch, n] as the products of `kernels` read it: x itself, or in `room`, where it takes batch *
// kernels.input_bytes(n) bytes from a 64-byte boundary on. What is returned points to one of them.
RowInputs PrepareInputs(const RowKernels& kernels, const float* x, int64_t ldx, int64_t batch, int64_t n,
                        uint8_t* room);
// No type's input_bytes(n) is more.
int64_t MostInputBytes(int64_t n);

// Why this CPU cannot run the kernels, or null. Ask before anything else of this room is called.
const char* UnsupportedCpuReason();
// Highway's name of the instruction set the kernels run on, for example "AVX3_DL".
std::string ActiveTarget();
// Those compiled in that this CPU has, best first.
std::vector<std::string> SupportedTargets();
// Tests only, not thread-safe: makes kernels resolved from now on use that target. Empty: the best again.
// GetRowKernels and the functions of ops.h and sketch.h follow.
void ForceTargetForTest(const std::string& target);

}  // namespace isotherm::kernels

#endif  // ISOTHERM_COMMON_KERNELS_ROW_KERNELS_H_
