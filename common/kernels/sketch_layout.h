#ifndef ISOTHERM_COMMON_KERNELS_SKETCH_LAYOUT_H_
#define ISOTHERM_COMMON_KERNELS_SKETCH_LAYOUT_H_

#include <cstdint>

// Columns come in panels of sixteen blocks of 32, one block for each 32-bit lane of an AVX-512 vector, so
// that integer products of a block accumulate in its own lane and are never summed across lanes:
//   row    for each panel 4 x 64 bytes of nibbles: byte 4 l + j of vector v holds column 4 v + j of block l
//   in its low
//          nibble and column 16 + 4 v + j in its high one, each as quant + 8; then for each panel 16 F16
//          scales
//   input  for each panel 8 x 64 int8 quants (byte 4 l + j of vector v: column 4 v + j of block l), 16 int32
//   (-8 times
//          the sum of the block's quants, which takes the 8 of the nibbles back), 16 F32 scales
// Columns past the end have scales of zero.
namespace isotherm::kernels::sketch {

inline constexpr int64_t kBlockColumns = 32;
inline constexpr int64_t kLanes = 16;
inline constexpr int64_t kPanelColumns = kBlockColumns * kLanes;
inline constexpr int64_t kVectorBytes = 64;

inline constexpr int64_t kNibbleVectors = 4;
inline constexpr int64_t kNibbleBytes = kNibbleVectors * kVectorBytes;
inline constexpr int64_t kScaleBytes = kLanes * sizeof(uint16_t);

inline constexpr int64_t kQuantVectors = 8;
inline constexpr int64_t kQuantBytes = kQuantVectors * kVectorBytes;
inline constexpr int64_t kOffsetBytes = kLanes * sizeof(int32_t);
inline constexpr int64_t kInputBytes = kQuantBytes + kOffsetBytes + kLanes * sizeof(float);

constexpr int64_t Panels(int64_t columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }

// scores[r] = the sum of all products of one row, the panels in order and the lanes as a balanced tree of
// halves: the order is part of the contract, so that scores are bit-equal on every instruction set.
void ScoreRows(const uint8_t* rows, int64_t row_bytes, int64_t num_rows, const uint8_t* input, int64_t panels,
               float* scores);

}  // namespace isotherm::kernels::sketch

#endif  // ISOTHERM_COMMON_KERNELS_SKETCH_LAYOUT_H_
