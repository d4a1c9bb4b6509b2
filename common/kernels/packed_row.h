#ifndef ISOTHERM_COMMON_KERNELS_PACKED_ROW_H_
#define ISOTHERM_COMMON_KERNELS_PACKED_ROW_H_

#include <cstdint>

// Weight rows as kernels read them. A packed row starts on a 64-byte boundary and is padded to a multiple of
// 64 bytes with zeros; scales lie apart from quants:
//   F32, F16, BF16   the values
//   Q8_0             int8 quants [n], then F16 scales [n / 32]
//   Q4_0             the 16-byte nibble groups of n / 32 blocks as GGUF orders them, then F16 scales [n / 32]
//   all others       the file's blocks unchanged
// Any change here changes kBundleLayoutVersion in common/neuron.
namespace isotherm::kernels {

enum class WeightType : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_K, kQ6_K, kQ4_1, kQ5_0, kQ5_1, kQ5_K };

const char* WeightTypeName(WeightType type);
// Columns of a row must be a multiple of this.
int64_t BlockColumns(WeightType type);
// Bytes of n columns as the file stores them, and packed.
int64_t FileRowBytes(WeightType type, int64_t columns);
int64_t PackedRowBytes(WeightType type, int64_t columns);

void PackRow(WeightType type, const uint8_t* file_row, int64_t columns, uint8_t* packed);
// Dequantises a row as the file stores it, or a packed one. Exact for F16 and BF16.
void UnpackFileRow(WeightType type, const uint8_t* file_row, int64_t columns, float* out);
void UnpackRow(WeightType type, const uint8_t* packed, int64_t columns, float* out);

// Types that F32 values can be rounded to: F32, F16, BF16 (nearest even), Q8_0, Q4_0 (the blocks llama.cpp's
// reference quantiser writes) and Q4_K (quantize_q4_k-inl.h).
bool CanPackFloats(WeightType type);
// To a packed row of such a type, or to the row as a file stores it.
void PackFloatRow(WeightType type, const float* values, int64_t columns, uint8_t* packed);
void EncodeFileRow(WeightType type, const float* values, int64_t columns, uint8_t* file_row);

float HalfToFloat(uint16_t half);
uint16_t FloatToHalf(float value);

}  // namespace isotherm::kernels

#endif  // ISOTHERM_COMMON_KERNELS_PACKED_ROW_H_
