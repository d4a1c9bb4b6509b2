// Logits of whole models against `transformers`: every fixture of tests/reference, row by row, in decode and
// in prefill.

#include "tests/gpu_worker/reference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/gguf/fixture.h"
#include "tests/gpu_worker/runner_harness.h"

namespace isotherm::gpu_worker {
namespace {

namespace v1 = worker::v1;

struct Fixture {
  const char* name;
  PredictorKind predictor;
  // Against NAME.predicted.bin instead of NAME.expected.bin.
  bool predicted = false;
};

void PrintTo(const Fixture& fixture, std::ostream* out) {
  *out << fixture.name << " " << PredictorKindName(fixture.predictor);
}

class ReferenceTest : public ::testing::TestWithParam<Fixture> {
 protected:
  static std::unique_ptr<RunnerHarness> MakeHarness(const HarnessOptions& options) {
    auto model = model::Model::Open(testing::FixturePath(std::string(GetParam().name) + ".gguf"));
    EXPECT_TRUE(model.ok()) << model.status();
    auto harness = RunnerHarness::Create(*std::move(model), options);
    EXPECT_TRUE(harness.ok()) << harness.status();
    return *std::move(harness);
  }

  static Expected Read() {
    return ReadExpected(std::string(GetParam().name) +
                        (GetParam().predicted ? ".predicted.bin" : ".expected.bin"));
  }
};

TEST_P(ReferenceTest, DecodeMatchesTransformers) {
  HarnessOptions options;
  options.predictor = GetParam().predictor;
  options.kv_type = kernels::KvType::kF32;
  auto harness = MakeHarness(options);
  const Expected expected = Read();
  const auto logits = harness->DecodeAll(1, expected.tokens);
  ASSERT_TRUE(logits.ok()) << logits.status();
  const double tolerance = Tolerance(harness->model());
  double worst = 0;
  for (size_t row = 0; row < expected.logits.size(); ++row) {
    const double error = RelativeError((*logits)[row], expected.logits[row]);
    worst = std::max(worst, error);
    EXPECT_LT(error, tolerance) << "row " << row;
  }
  RecordProperty("worst_relative_error", std::to_string(worst));
  std::printf("worst relative error %.2e, tolerance %.2e\n", worst, tolerance);
}

TEST_P(ReferenceTest, PrefillInChunksMatchesTransformers) {
  HarnessOptions options;
  options.predictor = GetParam().predictor;
  options.kv_type = kernels::KvType::kF32;
  options.threads = 2;
  auto harness = MakeHarness(options);
  const Expected expected = Read();
  const double tolerance = Tolerance(harness->model());
  // 7 rows go through the row kernels, 29 through the dense product.
  size_t position = 0;
  for (size_t chunk : {7u, 29u, 1000u}) {
    const size_t end = std::min(position + std::min<size_t>(chunk, 64), expected.tokens.size());
    const std::vector<uint32_t> tokens(expected.tokens.begin() + position, expected.tokens.begin() + end);
    if (tokens.empty()) break;
    const auto success = harness->Run(
        {harness->Slice(3, static_cast<int64_t>(position), tokens, v1::STEP_OUTPUT_LAST_LOGITS)});
    ASSERT_TRUE(success.ok()) << success.status();
    position = end;
    EXPECT_LT(RelativeError(ParseLogits(success->outputs(0).logits()), expected.logits[position - 1]),
              tolerance)
        << "after row " << position - 1;
  }
}

// The compressed caches lose precision; the loss must stay what the type costs.
TEST_P(ReferenceTest, CompressedKvCacheStaysClose) {
  if (GetParam().predicted) GTEST_SKIP() << "rounding may turn what a predictor decides";
  const Expected expected = Read();
  for (const auto& [type, bound] : {std::pair{kernels::KvType::kF16, 4e-3}, {kernels::KvType::kQ8_0, 6e-2}}) {
    HarnessOptions options;
    options.predictor = GetParam().predictor;
    options.kv_type = type;
    auto harness = MakeHarness(options);
    if (type == kernels::KvType::kQ8_0 && harness->model().hyperparameters().head_dim % 32 != 0) continue;
    const auto logits = harness->DecodeAll(1, expected.tokens);
    ASSERT_TRUE(logits.ok()) << logits.status();
    const double tolerance = Tolerance(harness->model()) + bound;
    for (size_t row = 0; row < expected.logits.size(); ++row) {
      EXPECT_LT(RelativeError((*logits)[row], expected.logits[row]), tolerance) << "row " << row;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, ReferenceTest,
    ::testing::Values(
        Fixture{"mha-relu-f32", PredictorKind::kAll}, Fixture{"mha-relu-f32", PredictorKind::kGate},
        Fixture{"gqa-silu-f32", PredictorKind::kAll}, Fixture{"gqa-relu-f16", PredictorKind::kGate},
        Fixture{"mha-silu-f16", PredictorKind::kAll}, Fixture{"mha-relu-q8_0", PredictorKind::kGate},
        Fixture{"gqa-silu-q8_0", PredictorKind::kAll}, Fixture{"gqa-relu-q4_0", PredictorKind::kAll},
        Fixture{"gqa-relu-q4_0", PredictorKind::kGate}, Fixture{"mha-silu-q4_0", PredictorKind::kAll},
        Fixture{"rope-base-f32", PredictorKind::kGate}, Fixture{"rope-linear-f32", PredictorKind::kAll},
        Fixture{"tied-relu-q8_0", PredictorKind::kGate},
        Fixture{"powerinfer-relu-q8_0", PredictorKind::kGate},
        Fixture{"powerinfer-relu-q8_0", PredictorKind::kLowRank, true},
        Fixture{"powerinfer-rank48-f32", PredictorKind::kAll},
        Fixture{"powerinfer-rank48-f32", PredictorKind::kLowRank, true}));

INSTANTIATE_TEST_SUITE_P(
    Families, ReferenceTest,
    ::testing::Values(
        Fixture{"llama-fatrelu-f32", PredictorKind::kAll}, Fixture{"llama-fatrelu-f32", PredictorKind::kGate},
        Fixture{"llama3-silu-f32", PredictorKind::kAll}, Fixture{"mistral-relu-f16", PredictorKind::kGate},
        Fixture{"mistral-drelu-q8_0", PredictorKind::kGate}, Fixture{"bamboo-drelu-f32", PredictorKind::kAll},
        Fixture{"bamboo-drelu-f32", PredictorKind::kGate},
        Fixture{"bamboo-powerinfer-q4_0", PredictorKind::kGate},
        Fixture{"bamboo-powerinfer-q4_0", PredictorKind::kLowRank, true},
        Fixture{"minicpm-relu-f32", PredictorKind::kGate}, Fixture{"minicpm-relu-q4_0", PredictorKind::kAll},
        Fixture{"qwen2-silu-f32", PredictorKind::kAll}, Fixture{"qwen2-silu-q8_0", PredictorKind::kAll},
        Fixture{"arcee-relu2-f32", PredictorKind::kAll}, Fixture{"arcee-relu2-f32", PredictorKind::kGate},
        Fixture{"nemotron-relu2-f32", PredictorKind::kGate},
        Fixture{"nemotron-relu2-f16", PredictorKind::kAll}, Fixture{"falcon7b-relu-f32", PredictorKind::kAll},
        Fixture{"falcon7b-relu-f32", PredictorKind::kGate}, Fixture{"falcon7b-gelu-f16", PredictorKind::kAll},
        Fixture{"falcon40b-relu-f32", PredictorKind::kGate},
        Fixture{"falcon40b-powerinfer-f16", PredictorKind::kAll},
        Fixture{"falcon40b-powerinfer-f16", PredictorKind::kLowRank, true},
        Fixture{"opt-relu-f32", PredictorKind::kAll}, Fixture{"opt-relu-f32", PredictorKind::kGate},
        Fixture{"opt-powerinfer-f16", PredictorKind::kGate},
        Fixture{"opt-powerinfer-f16", PredictorKind::kLowRank, true},
        Fixture{"opt-relu-q8_0", PredictorKind::kGate}));

}  // namespace
}  // namespace isotherm::gpu_worker
