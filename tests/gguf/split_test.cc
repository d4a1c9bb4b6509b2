#include "common/gguf/split.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "common/gguf/file.h"
#include "tests/gguf/fixture.h"
#include "tests/gguf/gguf_builder.h"
#include "tests/gguf/shards.h"
#include "tests/gguf/tiny_llama.h"

namespace isotherm::gguf {
namespace {

using ::isotherm::testing::Bytes;
using ::isotherm::testing::ReadFile;
using ::isotherm::testing::ShardPath;
using ::isotherm::testing::TinyLlama;
using ::isotherm::testing::WriteFile;
using ::isotherm::testing::WriteShards;
using ::testing::AllOf;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

class SplitTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "splitXXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    prefix_ = folder_ + "/tiny";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void ExpectError(const std::string& path, absl::StatusCode code, const std::string& file,
                   const std::string& message) {
    const auto opened = File::Open(path);
    EXPECT_EQ(opened.status().code(), code) << opened.status();
    EXPECT_THAT(std::string(opened.status().message()), AllOf(HasSubstr(file + ": "), HasSubstr(message)));
  }

  const Bytes bytes_ = TinyLlama();
  std::string folder_, prefix_;
};

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

TEST_F(SplitTest, TheFirstShardStandsForAll) {
  const auto whole = File::Parse(bytes_, "whole");
  ASSERT_TRUE(whole.ok()) << whole.status();
  const int64_t tensors = static_cast<int64_t>((*whole)->tensors().size());
  // With more shards than tensors some hold none, as the first may.
  for (const int64_t count : {int64_t{1}, int64_t{2}, int64_t{3}, tensors + 1}) {
    const auto file = File::Open(WriteShards(prefix_, bytes_, count));
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(*(*file)->GetString("general.name"), "tiny");
    ASSERT_EQ((*file)->tensors().size(), (*whole)->tensors().size());
    for (const TensorInfo& tensor : (*whole)->tensors()) {
      const TensorInfo* found = (*file)->FindTensor(tensor.name);
      ASSERT_NE(found, nullptr) << tensor.name;
      EXPECT_EQ(found->dims, tensor.dims);
      EXPECT_THAT((*file)->Data(*found), ElementsAreArray((*whole)->Data(tensor)));
      (*file)->PrefetchPages(*found);
      (*file)->ReleasePages(*found);
      EXPECT_THAT((*file)->Data(*found), ElementsAreArray((*whole)->Data(tensor)));
    }
    uint64_t size = 0;
    for (int64_t i = 0; i < count; ++i) size += std::filesystem::file_size(ShardPath(prefix_, i, count));
    EXPECT_EQ((*file)->size_bytes(), size);
  }
}

TEST_F(SplitTest, TheDigestSeesEveryShard) {
  const auto digest = [&] { return (*File::Open(ShardPath(prefix_, 0, 3)))->StructureDigest(); };
  WriteShards(prefix_, bytes_, 3);
  const std::string before = digest();
  EXPECT_EQ(digest(), before);
  Bytes last = ReadFile(ShardPath(prefix_, 2, 3));
  // The last tensor ends less than 32 bytes before its file does.
  for (size_t i = 1; i <= 64; ++i) last[last.size() - i] ^= 1;
  WriteFile(ShardPath(prefix_, 2, 3), last);
  EXPECT_NE(digest(), before);
}

TEST_F(SplitTest, AnotherShardThanTheFirstSaysWhichToGive) {
  WriteShards(prefix_, bytes_, 3);
  const std::string third = ShardPath(prefix_, 2, 3);
  ExpectError(third, kInvalid, third,
              "is shard 3 of 3 of a split model; give the first, whose name ends in '-00001-of-00003.gguf'");
}

TEST_F(SplitTest, AMissingOrDamagedShardIsNamed) {
  const std::string first = WriteShards(prefix_, bytes_, 3);
  const std::string second = ShardPath(prefix_, 1, 3);
  const Bytes content = ReadFile(second);
  std::filesystem::remove(second);
  ExpectError(first, absl::StatusCode::kNotFound, second, "it is shard 2 of 3 of " + first);
  WriteFile(second, Bytes(content.begin(), content.end() - 100));
  ExpectError(first, kInvalid, second, "lies past the end of the file");
  WriteFile(second, ReadFile(ShardPath(prefix_, 2, 3)));
  ExpectError(first, kInvalid, second, "says that it is shard 3 of 3, where shard 2 of 3 is expected");
}

TEST_F(SplitTest, ARenamedFirstShardSaysHowToNameIt) {
  const std::string first = WriteShards(prefix_, bytes_, 2);
  const std::string renamed = folder_ + "/renamed.gguf";
  std::filesystem::rename(first, renamed);
  ExpectError(renamed, kInvalid, renamed, "its name does not end in '-00001-of-00002.gguf'");
}

TEST_F(SplitTest, ShardsOfDifferentModelsAreRefused) {
  const auto change = [](const char* key, int64_t number, auto value) {
    return [=](int64_t shard, Header& header) {
      if (shard == number) header.Set(key, value);
    };
  };
  std::string first = WriteShards(prefix_, bytes_, 2, change("split.count", 1, uint16_t{3}));
  ExpectError(first, kInvalid, ShardPath(prefix_, 1, 2), "says that it is shard 2 of 3");
  first = WriteShards(prefix_, bytes_, 2, change("split.tensors.count", 0, int32_t{99}));
  ExpectError(first, kInvalid, first, "where 'split.tensors.count' says 99");
  first = WriteShards(prefix_, bytes_, 2, change("split.count", 0, int64_t{1} << 40));
  ExpectError(first, kInvalid, first, "'split.count' is 1099511627776");
  first = WriteShards(prefix_, bytes_, 2, change("split.no", 0, -1));
  ExpectError(first, kInvalid, first, "'split.no' is -1");
  first = WriteShards(prefix_, bytes_, 2, change("split.count", 0, "two"));
  ExpectError(first, kInvalid, first, "metadata key 'split.count' is \"two\"");

  first = WriteShards(prefix_, bytes_, 2);
  Bytes second = ReadFile(ShardPath(prefix_, 1, 2));
  const std::string magic = "PWRI";
  std::copy(magic.begin(), magic.end(), second.begin());
  WriteFile(ShardPath(prefix_, 1, 2), second);
  ExpectError(first, kInvalid, ShardPath(prefix_, 1, 2),
              "of a PowerInfer file, where shard 2 of 2 is expected");
}

TEST_F(SplitTest, ATensorInTwoShardsIsRefused) {
  WriteShards(prefix_, bytes_, 1, [](int64_t, Header& header) {
    header.Set("split.no", uint16_t{1});
    header.Set("split.count", uint16_t{2});
  });
  std::filesystem::rename(ShardPath(prefix_, 0, 1), ShardPath(prefix_, 1, 2));
  WriteShards(prefix_, bytes_, 1, [](int64_t, Header& header) { header.Set("split.count", uint16_t{2}); });
  std::filesystem::rename(ShardPath(prefix_, 0, 1), ShardPath(prefix_, 0, 2));
  ExpectError(ShardPath(prefix_, 0, 2), kInvalid, ShardPath(prefix_, 1, 2), "is in an earlier shard too");
}

TEST_F(SplitTest, ParsedBytesCannotBeSplit) {
  const Bytes first = ReadFile(WriteShards(prefix_, bytes_, 2));
  const auto file = File::Parse(first, "memory");
  EXPECT_EQ(file.status().code(), kInvalid);
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("memory: is shard 1 of 2 of a split model"));
}

TEST(WithoutShardSuffixTest, TakesTheSuffixAndNothingElse) {
  EXPECT_EQ(WithoutShardSuffix("model-00001-of-00003.gguf"), "model.gguf");
  EXPECT_EQ(WithoutShardSuffix("model-00001-of-00003"), "model");
  for (const char* name : {"model.gguf", "-00001-of-00003.gguf", "model-0001-of-00003.gguf",
                           "model_00001-of-00003.gguf", "model-0000x-of-00003.gguf", ""}) {
    EXPECT_EQ(WithoutShardSuffix(name), name);
  }
}

}  // namespace
}  // namespace isotherm::gguf
