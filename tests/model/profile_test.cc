#include "common/model/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "tests/gguf/tiny_llama.h"

namespace isotherm::model {
namespace {

using ::isotherm::testing::Bytes;
using ::isotherm::testing::GgufBuilder;
using ::testing::HasSubstr;

class ProfileTest : public ::testing::Test {
 protected:
  ProfileTest() { std::filesystem::create_directories(folder_); }
  ~ProfileTest() override { std::filesystem::remove_all(folder_); }

  void OpenModel(const testing::TinyLlamaOptions& tiny) {
    auto model = Model::Open(testing::WriteFile(folder_ + "/tiny.gguf", testing::TinyLlama(tiny)));
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }
  Profile Counted() const {
    const Hyperparameters& h = model_->hyperparameters();
    Profile profile{1234, {}, "some \"text\".txt", true};
    for (int64_t layer = 0; layer < h.layers; ++layer) {
      std::vector<double> counts(h.ffn);
      for (int64_t j = 0; j < h.ffn; ++j) counts[j] = static_cast<double>((layer + 1) * j * 1000);
      counts.back() = (1 << 24) - 1;
      profile.counts.push_back(counts);
    }
    return profile;
  }
  GgufBuilder ValidFile() const {
    GgufBuilder builder;
    builder.Add("general.architecture", "isotherm-profile")
        .Add("isotherm.profile.model_digest", model_->digest())
        .Add("isotherm.profile.tokens", uint64_t{100});
    for (const char* name : {"blk.0.ffn_act_counts", "blk.1.ffn_act_counts"}) {
      builder.AddTensor(name, {96}, gguf::TensorType::kF32, std::vector<float>(96, 1));
    }
    return builder;
  }
  absl::StatusOr<Profile> Read(const Bytes& bytes) const {
    return ReadProfile(testing::WriteFile(path_, bytes), *model_);
  }
  void ExpectRefused(const GgufBuilder& builder, absl::StatusCode code, const std::string& words) const {
    const absl::Status status = Read(builder.Build()).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  }

  const std::string folder_ = ::testing::TempDir() + std::to_string(getpid()) + "-profile";
  const std::string path_ = folder_ + "/tiny.profile.gguf";
  std::unique_ptr<Model> model_;
};

TEST_F(ProfileTest, WhatIsWrittenIsRead) {
  OpenModel({});
  EXPECT_EQ(ProfilePath(*model_), path_);
  EXPECT_EQ(ProfilePath(*model_, "/elsewhere"), "/elsewhere/tiny.profile.gguf");
  const Profile written = Counted();
  for (int repeat = 0; repeat < 2; ++repeat) {
    const absl::Status status = WriteProfile(written, *model_, path_);
    ASSERT_TRUE(status.ok()) << status;
    const absl::StatusOr<Profile> read = ReadProfile(path_, *model_);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->tokens, written.tokens);
    EXPECT_EQ(read->counts, written.counts);
    EXPECT_EQ(read->source, written.source);
    EXPECT_TRUE(read->online);
  }
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 2)
      << "nothing but the two files";
}

TEST_F(ProfileTest, AFolderThatCannotBeWrittenIsAnErrorThatNamesIt) {
  OpenModel({});
  const absl::Status status = WriteProfile(Counted(), *model_, folder_ + "/absent/x.gguf");
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("/absent/x.gguf"));
}

TEST_F(ProfileTest, OnlyWhatDescribesTheModelIsWritten) {
  OpenModel({});
  Profile profile = Counted();
  profile.counts.back().pop_back();
  EXPECT_EQ(WriteProfile(profile, *model_, path_).code(), absl::StatusCode::kInvalidArgument);
  profile = Counted();
  profile.counts.pop_back();
  EXPECT_EQ(WriteProfile(profile, *model_, path_).code(), absl::StatusCode::kInvalidArgument);
  profile = Counted();
  profile.tokens = 0;
  EXPECT_EQ(WriteProfile(profile, *model_, path_).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(ProfileTest, FilesWrittenByHandAreRead) {
  OpenModel({});
  const absl::StatusOr<Profile> profile = Read(ValidFile().Build());
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_EQ(profile->tokens, 100);
  EXPECT_EQ(profile->source, "unknown");
  EXPECT_FALSE(profile->online);
}

TEST_F(ProfileTest, OtherModelsAndOtherFilesAreRefused) {
  OpenModel({});
  GgufBuilder builder = ValidFile();
  builder.Remove("isotherm.profile.model_digest").Add("isotherm.profile.model_digest", "0123");
  ExpectRefused(builder, absl::StatusCode::kFailedPrecondition,
                "a profile of another model: 'tiny' has digest");
  builder = ValidFile();
  builder.Remove("isotherm.profile.model_digest");
  ExpectRefused(builder, absl::StatusCode::kInvalidArgument, "isotherm.profile.model_digest");
  EXPECT_EQ(ReadProfile(folder_ + "/tiny.gguf", *model_).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadProfile(folder_ + "/absent.gguf", *model_).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ProfileTest, SpoiledFilesAreRefused) {
  OpenModel({});
  for (const int64_t tokens : {int64_t{0}, int64_t{-1}}) {
    GgufBuilder builder = ValidFile();
    builder.Remove("isotherm.profile.tokens").Add("isotherm.profile.tokens", tokens);
    ExpectRefused(builder, absl::StatusCode::kInvalidArgument, "isotherm.profile.tokens");
  }
  for (const float count : {-1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    std::vector<float> counts(96, 1);
    counts[95] = count;
    GgufBuilder builder = ValidFile();
    builder.RemoveTensor("blk.1.ffn_act_counts")
        .AddTensor("blk.1.ffn_act_counts", {96}, gguf::TensorType::kF32, counts);
    ExpectRefused(builder, absl::StatusCode::kInvalidArgument, "'blk.1.ffn_act_counts' counts ");
  }
  GgufBuilder short_layer = ValidFile();
  short_layer.RemoveTensor("blk.1.ffn_act_counts")
      .AddTensor("blk.1.ffn_act_counts", {64}, gguf::TensorType::kF32, std::vector<float>(64, 1));
  ExpectRefused(short_layer, absl::StatusCode::kInvalidArgument, "blk.1.ffn_act_counts");
  GgufBuilder missing = ValidFile();
  missing.RemoveTensor("blk.0.ffn_act_counts");
  ExpectRefused(missing, absl::StatusCode::kInvalidArgument, "blk.0.ffn_act_counts");
}

TEST_F(ProfileTest, TruncatedFilesAreRefusedAtEveryLength) {
  OpenModel({});
  const Bytes whole = ValidFile().Build();
  for (size_t length = 0; length < whole.size(); length += 7) {
    EXPECT_FALSE(Read(Bytes(whole.begin(), whole.begin() + length)).ok()) << length << " bytes";
  }
}

TEST_F(ProfileTest, TheModelsOwnCountsAreFoundWhereThereIsNoFile) {
  OpenModel({.activation_counts = true});
  FoundProfile found = FindProfile(*model_);
  EXPECT_TRUE(absl::IsNotFound(found.beside));
  ASSERT_TRUE(found.profile.has_value());
  EXPECT_EQ(found.profile->tokens, 1000);
  ASSERT_EQ(found.profile->counts.size(), 2u);
  EXPECT_GT(found.profile->counts[1][0], found.profile->counts[1][95]);

  ASSERT_TRUE(WriteProfile(Counted(), *model_, path_).ok());
  found = FindProfile(*model_);
  EXPECT_TRUE(found.beside.ok());
  EXPECT_EQ(found.profile->tokens, 1234);

  OpenModel({});
  found = FindProfile(*model_);
  EXPECT_TRUE(absl::IsFailedPrecondition(found.beside)) << found.beside;
  EXPECT_FALSE(found.profile.has_value());
}

}  // namespace
}  // namespace isotherm::model
