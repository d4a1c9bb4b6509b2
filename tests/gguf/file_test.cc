#include "common/gguf/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/gguf/gguf_builder.h"
#include "tests/gguf/tiny_llama.h"

namespace isotherm::gguf {
namespace {

using ::isotherm::testing::Bytes;
using ::isotherm::testing::GgufBuilder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string TemporaryPath(const std::string& name) {
  return ::testing::TempDir() + std::to_string(getpid()) + name;
}

// The bytes outlive the file in each test below.
std::unique_ptr<File> ParseOrDie(const Bytes& bytes) {
  auto file = File::Parse(bytes, "test.gguf");
  EXPECT_TRUE(file.ok()) << file.status();
  return file.ok() ? *std::move(file) : nullptr;
}

TEST(FileTest, IntegersOfEveryWidthConvert) {
  const Bytes bytes = GgufBuilder()
                          .Add<uint8_t>("u8", 255)
                          .Add<int8_t>("i8", -128)
                          .Add<uint16_t>("u16", 65535)
                          .Add<int16_t>("i16", -32768)
                          .Add<uint32_t>("u32", 4294967295u)
                          .Add<int32_t>("i32", -2147483648)
                          .Add<uint64_t>("u64", uint64_t{1} << 62)
                          .Add<int64_t>("i64", std::numeric_limits<int64_t>::min())
                          .Build();
  const auto file = ParseOrDie(bytes);
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(*file->GetInteger("u8"), 255);
  EXPECT_EQ(*file->GetInteger("i8"), -128);
  EXPECT_EQ(*file->GetInteger("u16"), 65535);
  EXPECT_EQ(*file->GetInteger("i16"), -32768);
  EXPECT_EQ(*file->GetInteger("u32"), 4294967295);
  EXPECT_EQ(*file->GetInteger("i32"), -2147483648);
  EXPECT_EQ(*file->GetInteger("u64"), int64_t{1} << 62);
  EXPECT_EQ(*file->GetInteger("i64"), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(*file->GetFloat("i8"), -128.0);
  EXPECT_THAT(file->MetadataKeys(), ElementsAre("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"));
}

TEST(FileTest, OtherScalars) {
  const Bytes bytes = GgufBuilder()
                          .Add("f32", 0.5f)
                          .Add("f64", -1e300)
                          .Add("yes", true)
                          .Add("no", false)
                          .Add("text", "caf\u00e9")
                          .Add("empty", "")
                          .Add<uint64_t>("huge", ~uint64_t{0})
                          .Build();
  const auto file = ParseOrDie(bytes);
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(*file->GetFloat("f32"), 0.5);
  EXPECT_EQ(*file->GetFloat("f64"), -1e300);
  EXPECT_TRUE(*file->GetBool("yes"));
  EXPECT_FALSE(*file->GetBool("no"));
  EXPECT_EQ(*file->GetString("text"), "caf\u00e9");
  EXPECT_EQ(*file->GetString("empty"), "");
  EXPECT_EQ(*file->GetFloat("huge"), 0x1p64);
  EXPECT_EQ(file->GetInteger("huge").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(file->Has("f32"));
  EXPECT_FALSE(file->Has("f16"));
}

TEST(FileTest, Arrays) {
  const Bytes bytes = GgufBuilder()
                          .AddArray("strings", std::vector<std::string>{"a", "", "ccc"})
                          .AddArray("bytes", std::vector<uint8_t>{1, 255})
                          .AddArray("signed", std::vector<int64_t>{-1, 2})
                          .AddArray("floats", std::vector<float>{0.25f, -2})
                          .AddArray("none", std::vector<float>{})
                          .Build();
  const auto file = ParseOrDie(bytes);
  ASSERT_NE(file, nullptr);
  EXPECT_THAT(*file->GetStringArray("strings"), ElementsAre("a", "", "ccc"));
  EXPECT_THAT(*file->GetIntegerArray("bytes"), ElementsAre(1, 255));
  EXPECT_THAT(*file->GetIntegerArray("signed"), ElementsAre(-1, 2));
  EXPECT_THAT(*file->GetFloatArray("floats"), ElementsAre(0.25f, -2.0f));
  EXPECT_THAT(*file->GetFloatArray("signed"), ElementsAre(-1.0f, 2.0f));
  EXPECT_TRUE(file->GetFloatArray("none")->empty());
  EXPECT_EQ(*file->GetArraySize("strings"), 3);
}

TEST(FileTest, WrongTypesNameTheKeyAndBothTypes) {
  const Bytes bytes = GgufBuilder()
                          .Add<uint32_t>("number", 7)
                          .Add("text", "seven")
                          .AddArray("array", std::vector<int32_t>{1, 2})
                          .AddRaw("bool", /*type=*/7, {2})
                          .Build();
  const auto file = ParseOrDie(bytes);
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->GetString("number").status(),
            absl::InvalidArgumentError(
                "test.gguf: metadata key 'number' is 7 of type u32 where a string is expected"));
  EXPECT_EQ(file->GetInteger("text").status(),
            absl::InvalidArgumentError(
                "test.gguf: metadata key 'text' is \"seven\" of type string where an integer is expected"));
  EXPECT_EQ(file->GetStringArray("array").status(),
            absl::InvalidArgumentError(
                "test.gguf: metadata key 'array' is [1, 2] of type array of i32 where an array "
                "of strings is expected"));
  EXPECT_FALSE(file->GetBool("bool").ok());
  EXPECT_FALSE(file->GetBool("number").ok());
  EXPECT_FALSE(file->GetInteger("array").ok());
  EXPECT_FALSE(file->GetArraySize("number").ok());
  EXPECT_EQ(file->GetFloat("absent").status().code(), absl::StatusCode::kNotFound);
}

TEST(FileTest, DescribesValuesForPeople) {
  const Bytes bytes = GgufBuilder()
                          .Add("text", "two\nlines")
                          .Add("long", std::string(300, 'x'))
                          .Add("half", 0.5f)
                          .Add("yes", true)
                          .AddArray("few", std::vector<int32_t>{1, -2, 3})
                          .AddArray("many", std::vector<float>(9, 1.0f))
                          .AddArray("strings", std::vector<std::string>(3, "a"))
                          .Build();
  const auto file = ParseOrDie(bytes);
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->DescribeValue("text"), "\"two\\nlines\"");
  EXPECT_EQ(file->DescribeValue("long"), "\"" + std::string(120, 'x') + "... (300 bytes)\"");
  EXPECT_EQ(file->DescribeValue("half"), "0.5");
  EXPECT_EQ(file->DescribeValue("yes"), "true");
  EXPECT_EQ(file->DescribeValue("few"), "[1, -2, 3]");
  EXPECT_EQ(file->DescribeValue("many"), "[9 f32s]");
  EXPECT_EQ(file->DescribeValue("strings"), "[3 strings]");
  EXPECT_EQ(file->DescribeValue("absent"), "");
}

TEST(FileTest, FindsTensorsAndTheirData) {
  const Bytes bytes = GgufBuilder()
                          .SetVersion(2)
                          .AddTensor("a", {3}, TensorType::kF32, std::vector<float>{1, 2, 3})
                          .AddTensor("b", {32, 2}, TensorType::kQ8_0, std::vector<float>(64, 1.0f))
                          .Build();
  const auto file = ParseOrDie(bytes);
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->version(), 2u);
  EXPECT_FALSE(file->is_powerinfer());
  EXPECT_EQ(file->size_bytes(), bytes.size());
  ASSERT_EQ(file->tensors().size(), 2u);
  EXPECT_EQ(file->FindTensor("c"), nullptr);
  const TensorInfo* b = file->FindTensor("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->rank, 2);
  EXPECT_THAT(b->dims, ElementsAre(32, 2, 1, 1));
  EXPECT_EQ(b->bytes, 68u);
  EXPECT_EQ(b->offset + b->bytes, bytes.size());
  EXPECT_EQ(file->Data(*b).data(), bytes.data() + b->offset);
}

TEST(FileTest, HonoursTheAlignmentKey) {
  const Bytes bytes = GgufBuilder()
                          .SetAlignment(4096)
                          .Add<uint32_t>("general.alignment", 4096)
                          .AddTensor("a", {1}, TensorType::kF32, std::vector<float>{1})
                          .AddTensor("b", {1}, TensorType::kF32, std::vector<float>{2})
                          .Build();
  const auto file = ParseOrDie(bytes);
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->FindTensor("a")->offset, 4096u);
  EXPECT_EQ(file->FindTensor("b")->offset, 8192u);
}

TEST(FileTest, TranslatesPowerInfersOlderTypeNumbers) {
  const Bytes bytes = GgufBuilder()
                          .SetMagic("PWRI")
                          .AddTensor("indices", {3}, static_cast<TensorType>(18), Bytes(12))
                          .Build();
  const auto file = ParseOrDie(bytes);
  ASSERT_NE(file, nullptr);
  EXPECT_TRUE(file->is_powerinfer());
  EXPECT_EQ(file->FindTensor("indices")->type, TensorType::kI32);
  EXPECT_EQ(file->FindTensor("indices")->bytes, 12u);
}

TEST(FileTest, TensorsOfUnknownTypesAreListedWithoutData) {
  const Bytes bytes = GgufBuilder().AddTensor("x", {5}, static_cast<TensorType>(77), Bytes(3)).Build();
  const auto file = ParseOrDie(bytes);
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(TensorTypeName(file->FindTensor("x")->type), "type 77");
  EXPECT_TRUE(file->Data(*file->FindTensor("x")).empty());
}

TEST(FileTest, OpensFromDisk) {
  const Bytes bytes = testing::TinyLlama();
  const std::string path = testing::WriteFile(TemporaryPath("opens.gguf"), bytes);
  auto opened = File::Open(path);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const File& file = **opened;
  EXPECT_EQ(file.path(), path);
  EXPECT_EQ(file.StructureDigest(), ParseOrDie(bytes)->StructureDigest());
  for (const TensorInfo& tensor : file.tensors()) {
    file.PrefetchPages(tensor);
    const auto data = file.Data(tensor);
    const Bytes before(data.begin(), data.end());
    file.ReleasePages(tensor);
    EXPECT_EQ(Bytes(data.begin(), data.end()), before) << tensor.name;
    EXPECT_EQ(before, Bytes(bytes.begin() + tensor.offset, bytes.begin() + tensor.offset + tensor.bytes));
  }
  unlink(path.c_str());
}

TEST(FileTest, ReleasedPagesLeaveTheProcess) {
  constexpr uint64_t kWeights = 1 << 20;
  const Bytes bytes =
      GgufBuilder().AddTensor("big", {kWeights}, TensorType::kF32, std::vector<float>(kWeights, 1)).Build();
  const std::string path = testing::WriteFile(TemporaryPath("release.gguf"), bytes);
  auto opened = File::Open(path);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto data = (*opened)->Data((*opened)->tensors()[0]);
  const auto resident_kib = [] {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("RssFile:")) return std::stol(line.substr(8));
    }
    return 0L;
  };
  uint64_t sum = 0;
  for (const uint8_t byte : data) sum += byte;
  ASSERT_GT(sum, 0u);
  const long before = resident_kib();
  (*opened)->ReleasePages((*opened)->tensors()[0]);
  EXPECT_LT(resident_kib(), before - 3 * 1024);
  unlink(path.c_str());
}

TEST(FileTest, WhatCannotBeOpened) {
  EXPECT_EQ(File::Open("/nonexistent/x.gguf").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(File::Open("/nonexistent/x.gguf").status().message(), HasSubstr("/nonexistent/x.gguf"));
  EXPECT_EQ(File::Open("/dev").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(File::Open("/dev/zero").status().code(), absl::StatusCode::kInvalidArgument);
  const std::string path = testing::WriteFile(TemporaryPath("empty.gguf"), {});
  EXPECT_THAT(File::Open(path).status().message(), HasSubstr("is empty"));
  unlink(path.c_str());
}

TEST(FileTest, DigestTellsStructureMetadataAndWeightsApart) {
  const auto digest = [](const Bytes& bytes) { return ParseOrDie(bytes)->StructureDigest(); };
  const std::string base = digest(testing::TinyLlama());
  EXPECT_THAT(base, ::testing::MatchesRegex("[0-9a-f]{32}"));
  EXPECT_EQ(digest(testing::TinyLlama()), base);
  EXPECT_NE(digest(testing::TinyLlama({.seed = 2})), base);
  EXPECT_NE(digest(testing::TinyLlama({.type = TensorType::kF16})), base);
  EXPECT_NE(digest(testing::TinyLlama({.activation = "silu"})), base);
  EXPECT_NE(digest(testing::TinyLlama({.layers = 3})), base);
}

TEST(FileTest, LargeVocabulariesParseFast) {
  std::vector<std::string> tokens;
  for (int i = 0; i < 256000; ++i) tokens.push_back("token" + std::to_string(i));
  const Bytes bytes = GgufBuilder().AddArray("tokenizer.ggml.tokens", tokens).Build();
  const auto begin = std::chrono::steady_clock::now();
  const auto file = ParseOrDie(bytes);
  // Measured 1 ms when optimised; the bound is for sanitizers on a busy machine.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(*file->GetStringArray("tokenizer.ggml.tokens"), tokens);
}

}  // namespace
}  // namespace isotherm::gguf
