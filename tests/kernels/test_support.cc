#include "tests/kernels/test_support.h"

#include <cmath>
#include <cstring>
#include <random>
#include <set>

namespace isotherm::kernels {
namespace {

// Half to double by the definition.
double Half(const uint8_t* from) {
  const int bits = from[0] | from[1] << 8;
  const int exponent = bits >> 10 & 31;
  const double mantissa = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

double Bfloat(const uint8_t* from) {
  const uint32_t bits = static_cast<uint32_t>(from[0]) << 16 | static_cast<uint32_t>(from[1]) << 24;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

double Float(const uint8_t* from) {
  float value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

double ElementQ8(const uint8_t* block, int i) { return Half(block) * static_cast<int8_t>(block[2 + i]); }

double ElementQ4(const uint8_t* block, int i) {
  const int byte = block[2 + i % 16];
  return Half(block) * ((i < 16 ? byte & 15 : byte >> 4) - 8);
}

// The integer of a block of 32 with these nibbles, and its fifth bit in place.
int Nibble(const uint8_t* nibbles, int i) { return i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4; }
int FifthBit(const uint8_t* bits, int i) { return (bits[i / 8] >> (i % 8) & 1) << 4; }

double ElementQ41(const uint8_t* block, int i) {
  return Half(block) * Nibble(block + 4, i) + Half(block + 2);
}

double ElementQ50(const uint8_t* block, int i) {
  return Half(block) * ((Nibble(block + 6, i) | FifthBit(block + 2, i)) - 16);
}

double ElementQ51(const uint8_t* block, int i) {
  return Half(block) * (Nibble(block + 8, i) | FifthBit(block + 4, i)) + Half(block + 2);
}

// Of Q4_K and Q5_K, which differ in the integer.
double AffineElement(const uint8_t* block, int i, int integer) {
  const int group = i / 32;
  const uint8_t* const scales = block + 4;
  const int scale = group < 4 ? scales[group] & 63 : (scales[group + 4] & 15) | (scales[group - 4] >> 6) << 4;
  const int minimum = group < 4 ? scales[group + 4] & 63 : scales[group + 4] >> 4 | (scales[group] >> 6) << 4;
  return Half(block) * scale * integer - Half(block + 2) * minimum;
}

int SuperblockNibble(const uint8_t* nibbles, int i) {
  const int byte = nibbles[i / 64 * 32 + i % 32];
  return i % 64 < 32 ? byte & 15 : byte >> 4;
}

double ElementQ4K(const uint8_t* block, int i) {
  return AffineElement(block, i, SuperblockNibble(block + 16, i));
}

double ElementQ5K(const uint8_t* block, int i) {
  const int fifth = block[16 + i % 32] >> (i / 32) & 1;
  return AffineElement(block, i, SuperblockNibble(block + 48, i) | fifth << 4);
}

double ElementQ6K(const uint8_t* block, int i) {
  const int half = i / 128;
  const int quarter = i % 128 / 32;
  const int column = i % 32;
  const int low_byte = block[64 * half + 32 * (quarter % 2) + column];
  const int low = quarter < 2 ? low_byte & 15 : low_byte >> 4;
  const int high = block[128 + 32 * half + column] >> (2 * quarter) & 3;
  return Half(block + 208) * static_cast<int8_t>(block[192 + i / 16]) * ((low | high << 4) - 32);
}

double Element(WeightType type, const uint8_t* block, int i) {
  switch (type) {
    case WeightType::kF32:
      return Float(block);
    case WeightType::kF16:
      return Half(block);
    case WeightType::kBF16:
      return Bfloat(block);
    case WeightType::kQ8_0:
      return ElementQ8(block, i);
    case WeightType::kQ4_0:
      return ElementQ4(block, i);
    case WeightType::kQ4_K:
      return ElementQ4K(block, i);
    case WeightType::kQ6_K:
      return ElementQ6K(block, i);
    case WeightType::kQ4_1:
      return ElementQ41(block, i);
    case WeightType::kQ5_0:
      return ElementQ50(block, i);
    case WeightType::kQ5_1:
      return ElementQ51(block, i);
    case WeightType::kQ5_K:
      return ElementQ5K(block, i);
  }
  return NAN;
}

// Where the F16 scales of a block lie.
std::vector<int64_t> ScaleOffsets(WeightType type) {
  switch (type) {
    case WeightType::kQ8_0:
    case WeightType::kQ4_0:
    case WeightType::kQ5_0:
      return {0};
    case WeightType::kQ4_1:
    case WeightType::kQ5_1:
    case WeightType::kQ4_K:
    case WeightType::kQ5_K:
      return {0, 2};
    case WeightType::kQ6_K:
      return {208};
    default:
      return {};
  }
}

}  // namespace

float Dot(WeightType type, const uint8_t* row, const float* x, int64_t n) {
  const RowKernels& kernels = GetRowKernels(type);
  float y;
  kernels.mat_mul(row, 0, 1, PreparedInputs(kernels, x, n, 1, n), 1, n, &y, 1);
  return y;
}

std::vector<float> RandomFloats(int64_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = normal(random);
  return values;
}

std::vector<uint8_t> RandomFileRow(WeightType type, int64_t columns, uint64_t seed) {
  std::vector<uint8_t> row(static_cast<size_t>(FileRowBytes(type, columns)));
  const std::vector<float> normal = RandomFloats(columns + 1, seed);
  for (int64_t i = 0; i < columns && BlockColumns(type) == 1; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &normal[i], sizeof(bits));
    const uint16_t half =
        type == WeightType::kF16 ? FloatToHalf(normal[i]) : static_cast<uint16_t>(bits >> 16);
    if (type == WeightType::kF32) {
      std::memcpy(row.data() + 4 * i, &bits, 4);
    } else {
      std::memcpy(row.data() + 2 * i, &half, 2);
    }
  }
  if (BlockColumns(type) == 1) return row;
  std::mt19937_64 random(seed);
  for (uint8_t& byte : row) byte = static_cast<uint8_t>(random());
  const int64_t block_bytes = FileRowBytes(type, BlockColumns(type));
  for (int64_t block = 0; block < columns / BlockColumns(type); ++block) {
    for (const int64_t offset : ScaleOffsets(type)) {
      // Of any magnitude from the smallest subnormal up to 2^-4, with either sign, now and then zero.
      const uint16_t scale =
          block % 13 == 12 ? 0 : static_cast<uint16_t>(random() & 0x8000) | random() % 0x2c00;
      std::memcpy(row.data() + block * block_bytes + offset, &scale, sizeof(scale));
    }
  }
  return row;
}

std::vector<double> ReferenceRow(WeightType type, const std::vector<uint8_t>& file_row, int64_t columns) {
  const int64_t block_columns = BlockColumns(type);
  const int64_t block_bytes = FileRowBytes(type, block_columns);
  std::vector<double> values(static_cast<size_t>(columns));
  for (int64_t i = 0; i < columns; ++i) {
    const uint8_t* const block = file_row.data() + i / block_columns * block_bytes;
    values[i] = static_cast<float>(Element(type, block, static_cast<int>(i % block_columns)));
  }
  return values;
}

RandomRows::RandomRows(WeightType type, int64_t rows, int64_t columns, int64_t stride, uint64_t seed)
    : stride(stride), packed(rows * stride) {
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<uint8_t> file_row = RandomFileRow(type, columns, seed + static_cast<uint64_t>(r));
    PackRow(type, file_row.data(), columns, packed.data() + r * stride);
    values.push_back(ReferenceRow(type, file_row, columns));
  }
}

double ReferenceDot(const std::vector<double>& a, const float* b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double Norm(const std::vector<double>& a) {
  double sum = 0;
  for (const double value : a) sum += value * value;
  return std::sqrt(sum);
}

double Norm(const float* a, int64_t n) { return Norm(std::vector<double>(a, a + n)); }

std::vector<int64_t> AwkwardColumns(WeightType type) {
  const int64_t block = BlockColumns(type);
  std::set<int64_t> counts;
  for (int64_t blocks = 0; blocks <= (block == 1 ? 32 : 9); ++blocks) counts.insert(blocks * block);
  for (const int64_t around : {64, 512, 1024, 2048}) {
    for (int64_t blocks = -2; blocks <= 2; ++blocks) {
      const int64_t count = around / block * block + blocks * block;
      if (count >= 0) counts.insert(count);
    }
  }
  return {counts.begin(), counts.end()};
}

}  // namespace isotherm::kernels
