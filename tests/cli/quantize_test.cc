#include "tools/cli/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/base/command_line.h"
#include "common/kernels/packed_row.h"
#include "common/model/model.h"
#include "tests/gguf/fixture.h"
#include "tests/gguf/shards.h"
#include "tests/gguf/tiny_llama.h"
#include "tests/gpu_worker/runner_harness.h"

namespace isotherm::cli {
namespace {

using gguf::TensorType;
using ::isotherm::testing::Bytes;
using ::isotherm::testing::GgufBuilder;
using ::isotherm::testing::ReadFile;
using ::isotherm::testing::TinyLlama;
using ::isotherm::testing::TinyLlamaBuilder;
using ::isotherm::testing::TinyLlamaOptions;
using ::isotherm::testing::TinyPredictor;
using ::isotherm::testing::WriteFile;
using ::isotherm::testing::WriteShards;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

// Rows of one superblock, and more neurons than are transposed at once.
TinyLlamaOptions Wide(TensorType type = TensorType::kF32) {
  return {.hidden = 256, .ffn = 544, .type = type};
}

class QuantizeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "quantizeXXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    options_.in = folder_ + "/in.gguf";
    options_.out = folder_ + "/out.gguf";
    options_.threads = 2;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  absl::Status Run() {
    report_.str("");
    return Quantize(options_, report_);
  }

  // The written model; the test fails if there is none.
  std::unique_ptr<model::Model> Quantized(const Bytes& bytes, TensorType type) {
    WriteFile(options_.in, bytes);
    options_.rules.type = type;
    const absl::Status status = Run();
    EXPECT_TRUE(status.ok()) << status;
    auto model = model::Model::Open(options_.out);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? *std::move(model) : nullptr;
  }

  void ExpectError(absl::StatusCode code, const std::string& message) {
    const absl::Status status = Run();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_FALSE(std::filesystem::exists(options_.out));
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      EXPECT_EQ(entry.path().string().find(".part-"), std::string::npos) << entry.path();
    }
  }

  std::string folder_;
  QuantizeOptions options_;
  std::ostringstream report_;
};

std::vector<float> Decode(const gguf::File& file, const std::string& name) {
  const gguf::TensorInfo& tensor = *file.FindTensor(name);
  kernels::WeightType type = kernels::WeightType::kF32;
  for (const auto candidate : {kernels::WeightType::kF16, kernels::WeightType::kQ8_0,
                               kernels::WeightType::kQ4_0, kernels::WeightType::kQ4_K}) {
    if (gguf::TensorTypeName(tensor.type) == kernels::WeightTypeName(candidate)) type = candidate;
  }
  std::vector<float> values(tensor.dims[0] * tensor.dims[1]);
  kernels::UnpackFileRow(type, file.Data(tensor).data(), static_cast<int64_t>(values.size()), values.data());
  return values;
}

std::vector<std::vector<float>> Logits(std::unique_ptr<model::Model> model) {
  auto harness = gpu_worker::RunnerHarness::Create(std::move(model), {});
  EXPECT_TRUE(harness.ok()) << harness.status();
  const auto logits = (*harness)->DecodeAll(0, {3, 80, 200, 17, 101, 250});
  EXPECT_TRUE(logits.ok()) << logits.status();
  return *logits;
}

double RelativeDistance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

std::unique_ptr<model::Model> OpenOrDie(const std::string& path) {
  auto model = model::Model::Open(path);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

TEST_F(QuantizeTest, EveryTypeComputesAboutWhatTheModelDoes) {
  const struct {
    TensorType type;
    uint32_t file_type;
    double logits_within;
  } kCases[] = {{TensorType::kF16, 1, 2e-3},
                {TensorType::kBF16, 32, 2e-2},
                {TensorType::kQ8_0, 7, 3e-2},
                {TensorType::kQ4_0, 2, 0.4},
                {TensorType::kQ4_K, 14, 0.35}};
  for (const auto& expected : kCases) {
    const std::string name = gguf::TensorTypeName(expected.type);
    SCOPED_TRACE(name);
    auto model = Quantized(TinyLlama(Wide()), expected.type);
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(model->layers()[0].gate.info->type, expected.type);
    EXPECT_EQ(model->layers()[1].q.weight.info->type, expected.type);
    EXPECT_EQ(model->layers()[0].ffn_norm.weight.info->type, TensorType::kF32);
    EXPECT_EQ(*model->file().GetInteger("general.file_type"), expected.file_type);
    EXPECT_EQ(*model->file().GetInteger("general.quantization_version"), 2);
    EXPECT_EQ(*model->file().GetArraySize("tokenizer.ggml.tokens"), 320);
    EXPECT_THAT(report_.str(), HasSubstr("blk.0.ffn_gate.weight"));
    const auto exact = Logits(OpenOrDie(options_.in)), rounded = Logits(std::move(model));
    for (size_t i = 0; i < exact.size(); ++i)
      EXPECT_LT(RelativeDistance(rounded[i], exact[i]), expected.logits_within);
  }
}

TEST_F(QuantizeTest, BlocksAreTheReferences) {
  for (const TensorType type : {TensorType::kF16, TensorType::kQ8_0, TensorType::kQ4_0}) {
    options_.rules.pure = true;
    const auto model = Quantized(TinyLlama(Wide()), type);
    ASSERT_NE(model, nullptr);
    // The same random numbers, encoded while the file was built.
    const Bytes expected = TinyLlama(Wide(type));
    const auto reference = gguf::File::Parse(expected, "reference");
    ASSERT_TRUE(reference.ok()) << reference.status();
    for (const gguf::TensorInfo& tensor : (*reference)->tensors()) {
      const gguf::TensorInfo* written = model->file().FindTensor(tensor.name);
      ASSERT_NE(written, nullptr) << tensor.name;
      EXPECT_EQ(written->type, tensor.type) << tensor.name;
      EXPECT_THAT(model->file().Data(*written), ElementsAreArray((*reference)->Data(tensor))) << tensor.name;
    }
  }
}

TEST_F(QuantizeTest, TransposedDownHoldsTheSameWeights) {
  options_.rules.transpose_down = true;
  // From Q8_0 it stays that, in other blocks.
  for (const TensorType from : {TensorType::kF32, TensorType::kQ8_0}) {
    const auto model = Quantized(TinyLlama(Wide(from)), TensorType::kF16);
    ASSERT_NE(model, nullptr);
    for (const model::Layer& layer : model->layers()) EXPECT_TRUE(layer.down_transposed);
    const auto source = OpenOrDie(options_.in);
    const std::vector<float> down = Decode(source->file(), "blk.1.ffn_down.weight");
    std::vector<float> expected(down.size());
    for (int64_t j = 0; j < 544; ++j) {
      for (int64_t h = 0; h < 256; ++h) expected[j * 256 + h] = down[h * 544 + j];
    }
    const std::vector<float> turned = Decode(model->file(), "blk.1.ffn_down_t.weight");
    ASSERT_EQ(turned.size(), expected.size());
    EXPECT_LT(RelativeDistance(turned, expected), from == TensorType::kF32 ? 3e-4 : 6e-3);
    EXPECT_THAT(report_.str(), HasSubstr("transposed"));
  }
  // Transposed already: nothing is left to do, and nothing to complain about.
  TinyLlamaOptions transposed = Wide();
  transposed.transposed_down = true;
  ASSERT_NE(Quantized(TinyLlama(transposed), TensorType::kQ8_0), nullptr);
}

TEST_F(QuantizeTest, PredictorsAndOutputKeepEightBits) {
  TinyLlamaOptions tiny = Wide();
  tiny.predictor = TinyPredictor::kPowerInfer;
  tiny.predictor_rank = 256;
  for (const TensorType type : {TensorType::kQ4_0, TensorType::kQ4_K}) {
    for (const bool pure : {false, true}) {
      options_.rules.pure = pure;
      const auto model = Quantized(TinyLlama(tiny), type);
      ASSERT_NE(model, nullptr);
      EXPECT_TRUE(model->file().is_powerinfer());
      const TensorType precious = pure ? type : TensorType::kQ8_0;
      ASSERT_TRUE(model->layers()[0].predictor.has_value());
      EXPECT_EQ(model->layers()[0].predictor->a.info->type, precious);
      EXPECT_EQ(model->layers()[0].predictor->b.info->type, precious);
      EXPECT_EQ(model->output().info->type, precious);
      EXPECT_EQ(model->token_embedding().info->type, type);
      EXPECT_EQ(model->layers()[0].down.info->type, type);
    }
  }
  tiny = Wide();
  tiny.tied_head = true;
  options_.rules.pure = false;
  EXPECT_EQ(Quantized(TinyLlama(tiny), TensorType::kQ4_0)->output().info->type, TensorType::kQ8_0);
}

TEST_F(QuantizeTest, RowsThatBlocksDoNotDivideGetALargerType) {
  TinyLlamaOptions tiny = Wide();
  tiny.predictor = TinyPredictor::kLinear;
  tiny.predictor_rank = 20;
  const auto model = Quantized(TinyLlama(tiny), TensorType::kQ4_K);
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->layers()[0].up.info->type, TensorType::kQ4_K);
  EXPECT_EQ(model->layers()[0].down.info->type, TensorType::kQ8_0);            // rows of 544
  EXPECT_EQ(model->layers()[0].predictor->b.info->type, TensorType::kF16);     // of 20
  EXPECT_EQ(model->layers()[0].predictor->bias.info->type, TensorType::kF32);  // no matrix
}

TEST_F(QuantizeTest, WhatIsSmallerAlreadyIsCopied) {
  const auto model = Quantized(TinyLlama(Wide(TensorType::kQ4_0)), TensorType::kQ8_0);
  ASSERT_NE(model, nullptr);
  const auto source = OpenOrDie(options_.in);
  for (const gguf::TensorInfo& tensor : source->file().tensors()) {
    EXPECT_EQ(model->file().Data(*model->file().FindTensor(tensor.name)), source->file().Data(tensor))
        << tensor.name;
  }
  EXPECT_THAT(report_.str(), HasSubstr("Q4_0 kept"));
}

TEST_F(QuantizeTest, SplitModelsAreReadWhole) {
  options_.in = WriteShards(folder_ + "/split", TinyLlama(Wide()), 3);
  options_.rules.type = TensorType::kQ8_0;
  ASSERT_TRUE(Run().ok());
  const Bytes from_shards = ReadFile(options_.out);
  options_.in = folder_ + "/in.gguf";
  Quantized(TinyLlama(Wide()), TensorType::kQ8_0);
  EXPECT_EQ(from_shards, ReadFile(options_.out));
}

TEST_F(QuantizeTest, TheNumberOfThreadsDoesNotMatter) {
  Quantized(TinyLlama(Wide()), TensorType::kQ4_K);
  const Bytes two = ReadFile(options_.out);
  options_.threads = 5;
  Quantized(TinyLlama(Wide()), TensorType::kQ4_K);
  EXPECT_EQ(ReadFile(options_.out), two);
}

TEST_F(QuantizeTest, BadInputsAreNamedAndLeaveNothing) {
  ExpectError(absl::StatusCode::kNotFound, "in.gguf: cannot be opened");
  WriteFile(options_.in, Bytes{'G', 'G'});
  ExpectError(absl::StatusCode::kInvalidArgument, "in.gguf: ");

  const auto with = [&](TensorType type, Bytes data) {
    WriteFile(options_.in, TinyLlamaBuilder(Wide())
                               .RemoveTensor("blk.1.ffn_up.weight")
                               .AddTensor("blk.1.ffn_up.weight", {256, 544}, type, std::move(data))
                               .Build());
  };
  with(TensorType::kQ2_K, Bytes(544 * 84));
  ExpectError(absl::StatusCode::kUnimplemented, "blk.1.ffn_up.weight has type Q2_K");
  std::vector<float> values(544 * 256, 1.0f);
  values[1000] = std::numeric_limits<float>::quiet_NaN();
  with(TensorType::kF32, testing::EncodeWeights(TensorType::kF32, values));
  for (const TensorType type : {TensorType::kQ8_0, TensorType::kQ4_0, TensorType::kQ4_K}) {
    options_.rules.type = type;
    ExpectError(absl::StatusCode::kInvalidArgument, "tensor 'blk.1.ffn_up.weight' has weights that");
  }
  values[1000] = 1e6f;
  with(TensorType::kF32, testing::EncodeWeights(TensorType::kF32, values));
  options_.rules.type = TensorType::kF16;
  ExpectError(absl::StatusCode::kInvalidArgument, "F16 cannot hold");

  WriteFile(options_.in, GgufBuilder().Add("general.architecture", "none").Build());
  options_.rules.transpose_down = true;
  ExpectError(absl::StatusCode::kInvalidArgument, "leave --transpose-down out");
}

TEST_F(QuantizeTest, BadArgumentsAreUsageErrors) {
  EXPECT_EQ(*ParseQuantizeType("q4_k"), TensorType::kQ4_K);
  for (const char* name : {"", "Q5_0", "Q4_K_M", "F32"}) {
    const auto type = ParseQuantizeType(name);
    EXPECT_TRUE(base::IsUsageError(type.status())) << name;
    EXPECT_THAT(std::string(type.status().message()), HasSubstr("known are F16, BF16, Q8_0, Q4_0, Q4_K"));
  }
  WriteFile(options_.in, TinyLlama(Wide()));
  options_.out = folder_ + "/./in.gguf";
  EXPECT_TRUE(base::IsUsageError(Run()));
  EXPECT_EQ(ReadFile(options_.in), TinyLlama(Wide()));
}

// A limit on the size of files stands for a full disk.
TEST_F(QuantizeTest, AFullDiskLeavesNothing) {
  WriteFile(options_.in, TinyLlama(Wide()));
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 64 << 10;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = Run();
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, ignored);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("out.gguf: its "));
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(folder_))
    left.push_back(entry.path().filename());
  EXPECT_THAT(left, ElementsAre("in.gguf"));
}

}  // namespace
}  // namespace isotherm::cli
