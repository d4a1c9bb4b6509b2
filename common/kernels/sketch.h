#ifndef ISOTHERM_COMMON_KERNELS_SKETCH_H_
#define ISOTHERM_COMMON_KERNELS_SKETCH_H_

#include <cstdint>

// Gate rows at 4 bits a weight and activations at 8, enough to tell which gates will be positive. Integer
// products are exact, so scores are bit-equal on every instruction set (VNNI where the CPU has it).
namespace isotherm::kernels {

// Bytes of one sketched row, a multiple of 64. `columns` is a multiple of 32.
int64_t SketchRowBytes(int64_t columns);
void SketchRow(const float* row, int64_t columns, uint8_t* sketch);

// Bytes of a quantised input, a multiple of 64.
int64_t SketchInputBytes(int64_t columns);
void SketchInput(const float* x, int64_t columns, uint8_t* input);

// scores[r] ~ row_r . x for r < num_rows.
void SketchScores(const uint8_t* sketches, int64_t num_rows, const uint8_t* input, int64_t columns,
                  float* scores);

}  // namespace isotherm::kernels

#endif  // ISOTHERM_COMMON_KERNELS_SKETCH_H_
