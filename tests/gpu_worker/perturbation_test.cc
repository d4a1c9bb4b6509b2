// The other half of reference_test: a model that is a little wrong, in any tensor or in any number that a
// family brings along, does not pass for right.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "tests/gguf/fixture.h"
#include "tests/gpu_worker/reference.h"
#include "tests/gpu_worker/runner_harness.h"

namespace isotherm::gpu_worker {
namespace {

using testing::Bytes;

class PerturbationTest : public ::testing::TestWithParam<const char*> {
 protected:
  PerturbationTest()
      : bytes_(testing::ReadFile(testing::FixturePath(std::string(GetParam()) + ".gguf"))),
        expected_(ReadExpected(std::string(GetParam()) + ".expected.bin")) {}

  static std::unique_ptr<gguf::File> Parse(const Bytes& bytes) {
    auto file = gguf::File::Parse(bytes, GetParam());
    EXPECT_TRUE(file.ok()) << file.status();
    return *std::move(file);
  }

  // Error of the logits after a prefill of `kTokens`.
  static double Error(const Bytes& bytes, const Expected& expected) {
    constexpr int64_t kTokens = 24;
    auto model = model::Model::FromFile(Parse(bytes));
    EXPECT_TRUE(model.ok()) << model.status();
    const auto harness =
        RunnerHarness::Create(*std::move(model), {.kv_type = kernels::KvType::kF32, .kv_tokens = 512});
    EXPECT_TRUE(harness.ok()) << harness.status();
    const std::vector<uint32_t> tokens(expected.tokens.begin(), expected.tokens.begin() + kTokens);
    const auto success =
        (*harness)->Run({(*harness)->Slice(0, 0, tokens, worker::v1::STEP_OUTPUT_LAST_LOGITS)});
    EXPECT_TRUE(success.ok()) << success.status();
    return RelativeError(ParseLogits(success->outputs(0).logits()), expected.logits[kTokens - 1]);
  }

  static constexpr double kTolerance = 1e-4;
  Bytes bytes_;
  Expected expected_;
};

// A bias of the keys adds the same to the scores of all positions where nothing rotates them apart, and
// softmax takes that out again.
bool CannotMatter(const std::string& fixture, const std::string& tensor) {
  return fixture == "opt-relu-f32" && tensor.find("attn_k.bias") != std::string::npos;
}

TEST_P(PerturbationTest, EveryTensorMatters) {
  EXPECT_LT(Error(bytes_, expected_), kTolerance);
  const std::unique_ptr<gguf::File> file = Parse(bytes_);
  for (const gguf::TensorInfo& tensor : file->tensors()) {
    ASSERT_EQ(tensor.type, gguf::TensorType::kF32) << tensor.name;
    Bytes spoilt = bytes_;
    const absl::Span<const uint8_t> data = file->Data(tensor);
    uint8_t* values = spoilt.data() + (data.data() - bytes_.data());
    for (size_t i = 0; i < data.size(); i += sizeof(float)) {
      float value;
      std::memcpy(&value, values + i, sizeof(value));
      // Not one factor for all: a norm or a softmax could take that out.
      value *= i % 8 == 0 ? 1.01f : 0.99f;
      std::memcpy(values + i, &value, sizeof(value));
    }
    const double error = Error(spoilt, expected_);
    if (CannotMatter(GetParam(), tensor.name)) {
      EXPECT_LT(error, kTolerance) << tensor.name;
    } else {
      EXPECT_GT(error, 2 * kTolerance) << tensor.name;
    }
  }
}

TEST_P(PerturbationTest, EveryScaleMatters) {
  constexpr uint8_t kF32Value = 6;  // of GGUF's value types
  for (const char* key : {".embedding_scale", ".residual_scale", ".logit_scale", ".rope.freq_base",
                          ".activation_threshold", ".layer_norm_epsilon", ".layer_norm_rms_epsilon"}) {
    const std::string suffix = std::string(key) + std::string({kF32Value, 0, 0, 0});
    const auto found = std::search(bytes_.begin(), bytes_.end(), suffix.begin(), suffix.end());
    if (found == bytes_.end()) continue;
    const size_t at = static_cast<size_t>(found - bytes_.begin()) + suffix.size();
    Bytes spoilt = bytes_;
    float value;
    std::memcpy(&value, &spoilt[at], sizeof(value));
    // Epsilons are small beside what they are added to.
    value *= std::string(key).find("epsilon") == std::string::npos ? 1.02f : 1000.0f;
    std::memcpy(&spoilt[at], &value, sizeof(value));
    EXPECT_GT(Error(spoilt, expected_), 2 * kTolerance) << key;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, PerturbationTest,
                         ::testing::Values("llama-fatrelu-f32", "llama3-silu-f32", "bamboo-drelu-f32",
                                           "minicpm-relu-f32", "qwen2-silu-f32", "arcee-relu2-f32",
                                           "nemotron-relu2-f32", "falcon7b-relu-f32", "falcon40b-relu-f32",
                                           "opt-relu-f32"));

}  // namespace
}  // namespace isotherm::gpu_worker
