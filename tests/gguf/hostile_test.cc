// Files that are truncated, damaged or made to harm: an error status that says where, never a crash.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/gguf/file.h"
#include "tests/gguf/gguf_builder.h"
#include "tests/gguf/tiny_llama.h"

namespace isotherm::gguf {
namespace {

using ::isotherm::testing::Bytes;
using ::isotherm::testing::GgufBuilder;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr uint64_t kHuge = ~uint64_t{0};

absl::Status ParseStatus(const Bytes& bytes) { return File::Parse(bytes, "test.gguf").status(); }

GgufBuilder Small() {
  return GgufBuilder()
      .Add("general.architecture", "llama")
      .AddTensor("t", {4}, TensorType::kF32, std::vector<float>(4));
}

struct Case {
  std::string name;
  Bytes bytes;
  absl::StatusCode code;
  std::string message;
};

class HostileTest : public ::testing::TestWithParam<Case> {};

TEST_P(HostileTest, IsAnErrorThatSaysWhere) {
  const absl::Status status = ParseStatus(GetParam().bytes);
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(StartsWith("test.gguf: "), HasSubstr(GetParam().message)));
}

Bytes WithU64(Bytes bytes, size_t position, uint64_t value) {
  std::memcpy(bytes.data() + position, &value, sizeof(value));
  return bytes;
}

std::vector<Case> HeaderCases() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
  constexpr size_t kTensorCountAt = 8, kMetadataCountAt = 16;
  return {
      {"NoBytes", {}, kInvalid, "the magic at byte 0 reaches past the end of the file (0 bytes)"},
      {"OtherMagic", Small().SetMagic("ggjt").Build(), kInvalid, "begins with \"ggjt\""},
      {"BinaryMagic", Small().SetMagic(std::string("\0\1\2\xff", 4)).Build(), kInvalid,
       "begins with \"\\x00\\x01"},
      {"Version0", Small().SetVersion(0).Build(), kUnimplemented, "GGUF version 0"},
      {"Version1", Small().SetVersion(1).Build(), kUnimplemented, "GGUF version 1"},
      {"Version4", Small().SetVersion(4).Build(), kUnimplemented, "GGUF version 4; versions 2 and 3"},
      {"BigEndian", Small().SetVersion(3u << 24).Build(), kUnimplemented, "big-endian"},
      {"TensorCount", WithU64(Small().Build(), kTensorCountAt, kHuge), kInvalid,
       "claims 18446744073709551615 tensors"},
      {"MetadataCount", WithU64(Small().Build(), kMetadataCountAt, kHuge), kInvalid,
       "metadata keys, more than fit"},
      {"MoreTensorsThanThereAre", WithU64(Small().Build(), kTensorCountAt, 2), kInvalid, "tensor 2 of 2: "},
  };
}

std::vector<Case> MetadataCases() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  const std::vector<uint8_t> huge_length(8, 0xff);
  return {
      {"EmptyKey", Small().Add("", "x").Build(), kInvalid, "metadata key 2 of 2: its name has 0 bytes"},
      {"LongKey", Small().Add(std::string(65536, 'k'), "x").Build(), kInvalid, "its name has 65536 bytes"},
      {"DuplicateKey", Small().Add("general.architecture", "x").Build(), kInvalid,
       "metadata key 'general.architecture' (2 of 2): appears twice"},
      {"ControlCharactersInKey", Small().Add("a\x1b[31m", "x").Add("a\x1b[31m", "x").Build(), kInvalid,
       "'a\\x1b[31m'"},
      {"UnknownValueType", Small().AddRaw("k", 13, Bytes(8)).Build(), kInvalid, "value type 13"},
      {"UnknownElementType", Small().AddRawArray("k", 99, 1, Bytes(8)).Build(), kInvalid, "value type 99"},
      {"NestedArray", Small().AddRawArray("k", 9, 1, Bytes(64)).Build(), kInvalid, "array of arrays"},
      {"StringLength", Small().AddRaw("k", 8, huge_length).Build(), kInvalid,
       "metadata key 'k' (2 of 2): its string 1 of 1"},
      {"ArrayCount", Small().AddRawArray("k", 4, kHuge, Bytes(8)).Build(), kInvalid,
       "18446744073709551615 elements"},
      {"ArrayCountThatWraps", Small().AddRawArray("k", 4, (uint64_t{1} << 62) + 1, Bytes(8)).Build(),
       kInvalid, "elements"},
      {"StringArrayCount", Small().AddRawArray("k", 8, kHuge / 8, Bytes(8)).Build(), kInvalid, "elements"},
      {"ElementLength", Small().AddRawArray("k", 8, 1, huge_length).Build(), kInvalid, "its string 1 of 1"},
      {"AlignmentNoPower", Small().Add<uint32_t>("general.alignment", 48).Build(), kInvalid,
       "is 48 where a power of two"},
      {"AlignmentZero", Small().Add<uint32_t>("general.alignment", 0).Build(), kInvalid,
       "is 0 where a power of two"},
      {"AlignmentNegative", Small().Add<int32_t>("general.alignment", -32).Build(), kInvalid,
       "is -32 where a power of"},
      {"AlignmentHuge", Small().Add<uint32_t>("general.alignment", 1u << 31).Build(), kInvalid,
       "where a power of two"},
      {"AlignmentText", Small().Add("general.alignment", "32").Build(), kInvalid,
       "where an integer is expected"},
  };
}

std::vector<Case> TensorCases() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr TensorType kF32 = TensorType::kF32;
  const std::string long_name(65, 'n');
  return {
      {"EmptyName", Small().AddTensor("", {1}, kF32, Bytes(4)).Build(), kInvalid,
       "tensor 2 of 2: its name has 0 bytes"},
      {"LongName", Small().AddTensor(long_name, {1}, kF32, Bytes(4)).Build(), kInvalid,
       "its name has 65 bytes"},
      {"DuplicateName", Small().AddTensor("t", {1}, kF32, Bytes(4)).Build(), kInvalid,
       "tensor 't' (2 of 2): appears twice"},
      {"NoDimensions", Small().AddTensor("s", {}, kF32, Bytes(4)).Build(), kInvalid, "has 0 dimensions"},
      {"FiveDimensions", Small().AddTensor("s", {1, 1, 1, 1, 1}, kF32, Bytes(4)).Build(), kInvalid,
       "has 5 dimensions"},
      {"ZeroDimension", Small().AddTensor("s", {4, 0}, kF32, Bytes(4)).Build(), kInvalid,
       "has a dimension of 0"},
      {"NegativeDimension", Small().AddTensor("s", {kHuge}, kF32, Bytes(4)).Build(), kInvalid,
       "has a dimension of 18446744073709551615"},
      {"ProductWraps", Small().AddTensor("s", {uint64_t{1} << 32, uint64_t{1} << 32}, kF32, Bytes(4)).Build(),
       kInvalid, "more weights than 64 bits can count"},
      {"ProductOfUnknownTypeWraps",
       Small().AddTensor("s", {uint64_t{1} << 40, 1 << 30}, static_cast<TensorType>(77), Bytes(4)).Build(),
       kInvalid, "more weights than 64 bits can count"},
      {"BytesWrap", Small().AddTensor("s", {uint64_t{1} << 62}, kF32, Bytes(4)).Build(), kInvalid,
       "more bytes than 64 bits can count"},
      {"PartialBlock", Small().AddTensor("s", {48}, TensorType::kQ8_0, Bytes(68)).Build(), kInvalid,
       "has rows of 48 weights, which blocks of 32 (Q8_0) do not divide"},
      {"UnalignedOffset", Small().OverrideOffset("t", 4).Build(), kInvalid,
       "its offset 4 is no multiple of the alignment 32"},
      {"OffsetPastTheEnd", Small().OverrideOffset("t", 1 << 20).Build(), kInvalid,
       "tensor 't' (1 of 1): data at 1048"},
      {"OffsetThatWraps", Small().OverrideOffset("t", kHuge - 31).Build(), kInvalid,
       "past what 64 bits can count"},
      {"DataPastTheEnd", Small().AddTensor("s", {64}, kF32, Bytes(16)).Build(), kInvalid,
       "the file is truncated"},
  };
}

std::string CaseName(const ::testing::TestParamInfo<Case>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Header, HostileTest, ::testing::ValuesIn(HeaderCases()), CaseName);
INSTANTIATE_TEST_SUITE_P(Metadata, HostileTest, ::testing::ValuesIn(MetadataCases()), CaseName);
INSTANTIATE_TEST_SUITE_P(Tensors, HostileTest, ::testing::ValuesIn(TensorCases()), CaseName);

// A copy of exactly `length` bytes, so that a sanitizer sees a read past its end.
absl::Status ParsePrefix(const Bytes& bytes, size_t length) {
  return ParseStatus(Bytes(bytes.begin(), bytes.begin() + length));
}

TEST(DamagedFileTest, TruncatedAtEverySixtyFourth) {
  const Bytes bytes =
      testing::TinyLlama({.type = TensorType::kQ4_0, .predictor = testing::TinyPredictor::kLinear});
  for (size_t part = 0; part < 64; ++part) {
    const absl::Status status = ParsePrefix(bytes, bytes.size() * part / 64);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << part << "/64: " << status;
    EXPECT_THAT(status.message(), HasSubstr("fetch it again")) << part << "/64";
  }
}

TEST(DamagedFileTest, TruncatedAtEveryByteOfTheHeader) {
  const Bytes bytes = Small()
                          .Add<uint8_t>("u8", 1)
                          .Add("f64", 2.0)
                          .AddArray("strings", std::vector<std::string>{"a", "bc"})
                          .AddArray("floats", std::vector<float>{1, 2})
                          .Build();
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_EQ(ParsePrefix(bytes, length).code(), absl::StatusCode::kInvalidArgument) << length;
  }
  EXPECT_TRUE(ParseStatus(bytes).ok());
}

// Whatever still parses must keep its promises.
void CheckConsistent(const File& file) {
  for (const std::string& key : file.MetadataKeys()) {
    EXPECT_TRUE(file.Has(key));
    EXPECT_NE(file.DescribeValue(key), "");
    (void)file.GetStringArray(key);
    (void)file.GetIntegerArray(key);
    (void)file.GetFloatArray(key);
    (void)file.GetFloat(key);
  }
  for (const TensorInfo& tensor : file.tensors()) {
    EXPECT_LE(tensor.offset + tensor.bytes, file.size_bytes());
    EXPECT_EQ(file.Data(tensor).size(), tensor.bytes);
  }
  EXPECT_EQ(file.StructureDigest().size(), 32u);
}

TEST(DamagedFileTest, EveryBitOfTheHeaderFlipped) {
  Bytes bytes = Small().Add("f64", 2.0).AddArray("strings", std::vector<std::string>{"a", "bc"}).Build();
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= 1 << bit % 8;
    if (const auto file = File::Parse(bytes, "test.gguf"); file.ok()) CheckConsistent(**file);
    bytes[bit / 8] ^= 1 << bit % 8;
  }
}

TEST(DamagedFileTest, RandomBytesOverwritten) {
  std::mt19937 random(7);
  const Bytes good = Small()
                         .AddArray("ints", std::vector<int32_t>{1, 2, 3})
                         .AddArray("s", std::vector<std::string>{"x"})
                         .Build();
  for (int round = 0; round < 5000; ++round) {
    Bytes bytes = good;
    for (uint32_t i = 0; i <= random() % 8; ++i)
      bytes[random() % bytes.size()] = static_cast<uint8_t>(random());
    if (const auto file = File::Parse(bytes, "test.gguf"); file.ok()) CheckConsistent(**file);
  }
}

}  // namespace
}  // namespace isotherm::gguf
