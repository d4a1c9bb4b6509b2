#include "common/kernels/packed_row.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "common/kernels/pack_kernels.h"
#include "common/kernels/row_kernels.h"

namespace isotherm::kernels {
namespace {

constexpr int64_t kAlignment = 64;
// Of Q8_0 and Q4_0.
constexpr int64_t kBlockColumns = 32;
constexpr int64_t kScaleBytes = 2;

// Rows of files are decoded and encoded by way of packed pieces of so many columns, so that every format is
// known in one place.
constexpr int64_t kPiece = 512;

struct TypeTraits {
  const char* name;
  int64_t block_columns;
  int64_t block_bytes;
};

// In the order of WeightType.
constexpr TypeTraits kTraits[] = {{"F32", 1, 4},    {"F16", 1, 2},      {"BF16", 1, 2},     {"Q8_0", 32, 34},
                                  {"Q4_0", 32, 18}, {"Q4_K", 256, 144}, {"Q6_K", 256, 210}, {"Q4_1", 32, 20},
                                  {"Q5_0", 32, 22}, {"Q5_1", 32, 24},   {"Q5_K", 256, 176}};

const TypeTraits& Traits(WeightType type) { return kTraits[static_cast<int>(type)]; }

bool HasScalesApart(WeightType type) { return type == WeightType::kQ8_0 || type == WeightType::kQ4_0; }

// From scales apart to blocks that begin with theirs.
void JoinScales(WeightType type, const uint8_t* packed, int64_t columns, uint8_t* file_row) {
  const int64_t block_bytes = Traits(type).block_bytes;
  const int64_t quant_bytes = block_bytes - kScaleBytes;
  const int64_t blocks = columns / kBlockColumns;
  const uint8_t* const scales = packed + blocks * quant_bytes;
  for (int64_t i = 0; i < blocks; ++i) {
    uint8_t* const block = file_row + i * block_bytes;
    std::memcpy(block, scales + i * kScaleBytes, kScaleBytes);
    std::memcpy(block + kScaleBytes, packed + i * quant_bytes, static_cast<size_t>(quant_bytes));
  }
}

void SeparateScales(WeightType type, const uint8_t* file_row, int64_t columns, uint8_t* packed) {
  const int64_t block_bytes = Traits(type).block_bytes;
  const int64_t quant_bytes = block_bytes - kScaleBytes;
  const int64_t blocks = columns / kBlockColumns;
  uint8_t* const scales = packed + blocks * quant_bytes;
  for (int64_t i = 0; i < blocks; ++i) {
    const uint8_t* const block = file_row + i * block_bytes;
    std::memcpy(scales + i * kScaleBytes, block, kScaleBytes);
    std::memcpy(packed + i * quant_bytes, block + kScaleBytes, static_cast<size_t>(quant_bytes));
  }
}

void ZeroPadding(WeightType type, int64_t columns, uint8_t* packed) {
  // std::fill, as an empty row may lie nowhere.
  std::fill(packed + FileRowBytes(type, columns), packed + PackedRowBytes(type, columns), uint8_t{0});
}

}  // namespace

const char* WeightTypeName(WeightType type) { return Traits(type).name; }

int64_t BlockColumns(WeightType type) { return Traits(type).block_columns; }

int64_t FileRowBytes(WeightType type, int64_t columns) {
  return columns / Traits(type).block_columns * Traits(type).block_bytes;
}

int64_t PackedRowBytes(WeightType type, int64_t columns) {
  return (FileRowBytes(type, columns) + kAlignment - 1) / kAlignment * kAlignment;
}

void PackRow(WeightType type, const uint8_t* file_row, int64_t columns, uint8_t* packed) {
  if (HasScalesApart(type)) {
    SeparateScales(type, file_row, columns, packed);
  } else {
    std::copy_n(file_row, FileRowBytes(type, columns), packed);
  }
  ZeroPadding(type, columns, packed);
}

void UnpackFileRow(WeightType type, const uint8_t* file_row, int64_t columns, float* out) {
  alignas(kAlignment) uint8_t packed[kPiece * sizeof(float)];
  const auto unpack = GetRowKernels(type).unpack;
  for (int64_t begin = 0; begin < columns; begin += kPiece) {
    const int64_t count = std::min(kPiece, columns - begin);
    PackRow(type, file_row + FileRowBytes(type, begin), count, packed);
    unpack(packed, count, out + begin);
  }
}

void UnpackRow(WeightType type, const uint8_t* packed, int64_t columns, float* out) {
  GetRowKernels(type).unpack(packed, columns, out);
}

bool CanPackFloats(WeightType type) {
  switch (type) {
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
    case WeightType::kQ8_0:
    case WeightType::kQ4_0:
    case WeightType::kQ4_K:
      return true;
    case WeightType::kQ6_K:
    case WeightType::kQ4_1:
    case WeightType::kQ5_0:
    case WeightType::kQ5_1:
    case WeightType::kQ5_K:
      return false;
  }
  return false;
}

void PackFloatRow(WeightType type, const float* values, int64_t columns, uint8_t* packed) {
  const PackKernels& kernels = GetPackKernels();
  const auto scales_after = [&](int64_t bytes) { return reinterpret_cast<uint16_t*>(packed + bytes); };
  switch (type) {
    case WeightType::kF32:
      std::copy_n(reinterpret_cast<const uint8_t*>(values), FileRowBytes(type, columns), packed);
      break;
    case WeightType::kF16:
      kernels.round_f16(values, columns, reinterpret_cast<uint16_t*>(packed));
      break;
    case WeightType::kBF16:
      kernels.round_bf16(values, columns, reinterpret_cast<uint16_t*>(packed));
      break;
    case WeightType::kQ8_0:
      kernels.quantize_q8_0(values, columns, reinterpret_cast<int8_t*>(packed), scales_after(columns));
      break;
    case WeightType::kQ4_0:
      kernels.quantize_q4_0(values, columns, packed, scales_after(columns / 2));
      break;
    case WeightType::kQ4_K:
      kernels.quantize_q4_k(values, columns, packed);
      break;
    case WeightType::kQ6_K:
    case WeightType::kQ4_1:
    case WeightType::kQ5_0:
    case WeightType::kQ5_1:
    case WeightType::kQ5_K:
      std::abort();  // Outside the contract: nothing writes these types.
  }
  ZeroPadding(type, columns, packed);
}

void EncodeFileRow(WeightType type, const float* values, int64_t columns, uint8_t* file_row) {
  alignas(kAlignment) uint8_t packed[kPiece * sizeof(float)];
  for (int64_t begin = 0; begin < columns; begin += kPiece) {
    const int64_t count = std::min(kPiece, columns - begin);
    PackFloatRow(type, values + begin, count, packed);
    uint8_t* const to = file_row + FileRowBytes(type, begin);
    if (HasScalesApart(type)) {
      JoinScales(type, packed, count, to);
    } else {
      std::copy_n(packed, FileRowBytes(type, count), to);
    }
  }
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  // Infinities and NaNs keep the largest exponent; everything else is exact after scaling by the difference
  // of the exponent biases, 2^(127 - 15), subnormals included.
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  return std::bit_cast<float>(sign |
                              std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f));
}

uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity.
  if (magnitude < 0x38800000) {
    // Subnormal: adding 1/2 leaves units of 2^-24 in the last place, rounded by the addition itself.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f)));
  }
  const uint32_t odd = magnitude >> 13 & 1;
  return static_cast<uint16_t>(sign | (magnitude - (112u << 23) + 0xfff + odd) >> 13);
}

}  // namespace isotherm::kernels
