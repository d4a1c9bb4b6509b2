#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/gguf/fixture.h"
#include "tests/gguf/gguf_builder.h"

namespace isotherm::testing {
namespace {

using gguf::TensorType;

// u32 type, u32 count, f32 values[count], u8 expected[].
void ExpectEqualToReference(const std::string& fixture, TensorType type) {
  const Bytes file = ReadFile(FixturePath(fixture));
  ASSERT_GT(file.size(), 8u) << fixture;
  uint32_t header[2];
  std::memcpy(header, file.data(), sizeof(header));
  ASSERT_EQ(header[0], static_cast<uint32_t>(type));
  std::vector<float> values(header[1]);
  ASSERT_GT(file.size(), sizeof(header) + values.size() * sizeof(float));
  std::memcpy(values.data(), file.data() + sizeof(header), values.size() * sizeof(float));
  EXPECT_EQ(EncodeWeights(type, values),
            Bytes(file.begin() + sizeof(header) + values.size() * sizeof(float), file.end()));
}

TEST(EncodeWeightsTest, Q8_0EqualsReference) {
  ExpectEqualToReference("quantize_q8_0.bin", TensorType::kQ8_0);
}
TEST(EncodeWeightsTest, Q4_0EqualsReference) {
  ExpectEqualToReference("quantize_q4_0.bin", TensorType::kQ4_0);
}

TEST(EncodeWeightsTest, HalvesRoundToNearestEven) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<std::pair<float, uint16_t>> cases = {
      {0.0f, 0x0000},           {-0.0f, 0x8000},        {1.0f, 0x3c00},         {-2.0f, 0xc000},
      {65504.0f, 0x7bff},       {65519.0f, 0x7bff},     {65520.0f, 0x7c00},     {kInfinity, 0x7c00},
      {-kInfinity, 0xfc00},     {0x1p-24f, 0x0001},     {0x1p-25f, 0x0000},     {0x1.8p-24f, 0x0002},
      {0x1p-14f, 0x0400},       {0x1.ff8p-15f, 0x03ff}, {0x1.ffep-15f, 0x0400}, {1 + 0x1p-11f, 0x3c00},
      {1 + 0x1.8p-10f, 0x3c02}, {0x1.ffep0f, 0x4000},
  };
  for (const auto& [value, expected] : cases) {
    const Bytes bytes = EncodeWeights(TensorType::kF16, {value});
    EXPECT_EQ(bytes[0] | bytes[1] << 8, expected) << value;
  }
}

}  // namespace
}  // namespace isotherm::testing
