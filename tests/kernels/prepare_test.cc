#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/kernels/test_support.h"

namespace isotherm::kernels {
namespace {

using PrepareTest = TargetTest;
INSTANTIATE_ON_EVERY_TARGET(PrepareTest);

constexpr int64_t kBlock = 32;
constexpr float kMost = 32639;

// A block by its definition, one value after the other.
struct ReferenceBlock {
  explicit ReferenceBlock(const float* x) {
    float most = 0;
    for (int i = 0; i < kBlock; ++i) {
      if (std::isnan(x[i])) most = NAN;
      if (!std::isnan(most)) most = std::max(most, std::abs(x[i]));
    }
    const bool vanishes = most < 0x1p-100f;
    unit = vanishes ? 0 : most / kMost;
    const float inverse = vanishes ? 0 : kMost / most;
    for (int i = 0; i < kBlock; ++i) {
      const float product = x[i] * inverse;
      // Only beside an infinite or no unit.
      constexpr int kNone = std::numeric_limits<int16_t>::min();
      integers[i] = std::isnan(product) ? kNone : static_cast<int>(std::nearbyint(product));
    }
  }

  // integer = 256 * Upper + Lower, but for saturation.
  int8_t Upper(int i) const { return static_cast<int8_t>((integers[i] + 128) >> 8); }
  int8_t Lower(int i) const { return static_cast<int8_t>(integers[i]); }

  float unit;
  int integers[kBlock];
};

std::vector<ReferenceBlock> ReferenceBlocks(const float* x, int64_t n) {
  std::vector<ReferenceBlock> blocks;
  for (int64_t i = 0; i < n; i += kBlock) blocks.emplace_back(x + i);
  return blocks;
}

// Where integers have no meaning: every product is NaN.
bool IsVoid(const ReferenceBlock& block) { return std::isnan(block.unit); }

template <class T>
T At(const uint8_t* from, int64_t index) {
  T value;
  std::memcpy(&value, from + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

void ExpectUnits(const std::vector<ReferenceBlock>& blocks, const uint8_t* units) {
  const auto count = static_cast<int64_t>(blocks.size());
  for (int64_t b = 0; b < (count + 15) / 16 * 16; ++b) {
    const float unit = At<float>(units, b);
    if (b < count && IsVoid(blocks[b])) {
      EXPECT_TRUE(std::isnan(unit)) << "block " << b << ": " << unit;
    } else {
      EXPECT_EQ(unit, b < count ? blocks[b].unit : 0.0f) << "block " << b;
    }
  }
}

void ExpectWords(const std::vector<ReferenceBlock>& blocks, const uint8_t* words) {
  for (size_t b = 0; b < blocks.size(); ++b) {
    for (int64_t i = 0; i < kBlock && !IsVoid(blocks[b]); ++i) {
      ASSERT_EQ(At<int16_t>(words, b * kBlock + i), blocks[b].integers[i]) << "block " << b << ", " << i;
    }
  }
}

// Four blocks as nibbles meet them: 16 bytes of each in a plane; zeros past the last block.
void ExpectPanel(const ReferenceBlock* blocks, int64_t count, const uint8_t* panel) {
  const float zeros[kBlock] = {};
  for (int64_t b = 0; b < 4; ++b) {
    const ReferenceBlock block = b < count ? blocks[b] : ReferenceBlock(zeros);
    if (IsVoid(block)) continue;
    int sums[4] = {};
    for (int i = 0; i < kBlock; ++i) {
      const int64_t at = i / 16 * 64 + b * 16 + i % 16;
      ASSERT_EQ(At<int8_t>(panel, at), block.Upper(i)) << "block " << b << ", " << i;
      ASSERT_EQ(At<int8_t>(panel, 128 + at), block.Lower(i)) << "block " << b << ", " << i;
      sums[i % 16 / 4] += 256 * block.Upper(i) + block.Lower(i);
    }
    for (int lane = 0; lane < 4; ++lane) {
      EXPECT_EQ(At<int32_t>(panel + 256, b * 4 + lane), -8 * sums[lane])
          << "block " << b << ", lane " << lane;
    }
  }
}

void ExpectPrepared(WeightType type, const float* x, int64_t n) {
  const RowKernels& kernels = GetRowKernels(type);
  const int64_t size = kernels.input_bytes(n);
  const Bytes input(size);
  std::fill_n(input.data(), size, uint8_t{0xA5});
  kernels.prepare(x, n, input.data());
  const std::vector<ReferenceBlock> blocks = ReferenceBlocks(x, n);
  const auto count = static_cast<int64_t>(blocks.size());
  ExpectUnits(blocks, input.data() + size - (count + 15) / 16 * 64);
  if (type == WeightType::kQ8_0) return ExpectWords(blocks, input.data());
  for (int64_t b = 0; b < count; b += 4) {
    SCOPED_TRACE(testing::Message() << "panel " << b / 4);
    ExpectPanel(blocks.data() + b, count - b, input.data() + b / 4 * 320);
  }
}

// Blocks unlike each other, beginning with another one for each `first`.
std::vector<float> BlocksOfEveryKind(int64_t n, int64_t first) {
  constexpr int64_t kKinds = 12;
  std::vector<float> x = RandomFloats(n, static_cast<uint64_t>(first));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t block = i / kBlock;
    const bool one = i % kBlock == block % kBlock;
    // One value of the block's largest magnitude; at 32639, others are their own integers.
    const auto with = [&](float most, float other) { return one ? std::copysign(most, x[i]) : other; };
    const auto k = static_cast<float>(i % kBlock - 16);
    switch ((block + first) % kKinds) {
      case 0:
        x[i] = std::copysign(0.0f, x[i]);
        break;
      case 1:
        x[i] = std::ldexp(x[i], -145);
        break;
      case 2:
        x[i] = with(0x1p-100f, std::ldexp(x[i], -102));
        break;
      case 3:
        x[i] = with(std::nextafter(0x1p-100f, 0.0f), std::ldexp(x[i], -110));
        break;
      case 4:
        x[i] = with(kMost, k + 0.5f);
        break;
      case 5:
        x[i] = with(kMost, 128 * k);
        break;
      case 6:
        x[i] = with(FLT_MAX, std::ldexp(x[i], 120));
        break;
      case 7:
        x[i] = with(INFINITY, x[i]);
        break;
      case 8:
        x[i] = with(NAN, x[i]);
        break;
      case 9:
        x[i] = with(NAN, i % 2 == 0 ? INFINITY : 0.0f);
        break;
      case 10:
        x[i] = std::ldexp(x[i], static_cast<int>(block % 199) - 99);
        break;
      default:
        break;
    }
  }
  return x;
}

TEST_P(PrepareTest, VectorsAreRoundedAsDefined) {
  for (const WeightType type : {WeightType::kQ8_0, WeightType::kQ4_0}) {
    for (const int64_t n : AwkwardColumns(type)) {
      for (int64_t first = 0; first < 12; ++first) {
        SCOPED_TRACE(testing::Message() << WeightTypeName(type) << " x " << n << ", kind " << first);
        // Not aligned; ends with the allocation.
        const std::vector<float> x = BlocksOfEveryKind(n, first);
        std::vector<float> shifted(1, 0.0f);
        shifted.insert(shifted.end(), x.begin(), x.end());
        ExpectPrepared(type, shifted.data() + 1, n);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(PrepareTest, EveryColumnMayBeTheLargest) {
  for (const WeightType type : {WeightType::kQ8_0, WeightType::kQ4_0}) {
    for (int64_t column = 0; column < 512; ++column) {
      SCOPED_TRACE(testing::Message() << WeightTypeName(type) << ", column " << column);
      std::vector<float> x = RandomFloats(512, 1);
      x[column] = -1000;
      ExpectPrepared(type, x.data(), 512);
      if (HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace isotherm::kernels
