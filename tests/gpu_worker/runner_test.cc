#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "tests/gguf/tiny_llama.h"
#include "tests/gpu_worker/runner_harness.h"

namespace isotherm::gpu_worker {
namespace {

namespace v1 = worker::v1;
using ::testing::HasSubstr;

std::unique_ptr<RunnerHarness> MakeHarness(const testing::TinyLlamaOptions& tiny,
                                           const HarnessOptions& options) {
  static std::vector<testing::Bytes>* kept =
      new std::vector<testing::Bytes>();  // the model refers to its bytes
  kept->push_back(testing::TinyLlama(tiny));
  auto file = gguf::File::Parse(kept->back(), "tiny.gguf");
  EXPECT_TRUE(file.ok()) << file.status();
  auto model = model::Model::FromFile(*std::move(file));
  EXPECT_TRUE(model.ok()) << model.status();
  auto harness = RunnerHarness::Create(*std::move(model), options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  return *std::move(harness);
}

std::vector<uint32_t> Tokens(int64_t count, uint32_t seed) {
  std::vector<uint32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    tokens.push_back(3 + (seed >> 8) % 256);
  }
  return tokens;
}

int64_t Sum(const std::vector<uint64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

TEST(RunnerTest, CountsTheFiringsOfEachNeuron) {
  for (PredictorKind predictor : {PredictorKind::kAll, PredictorKind::kGate}) {
    HarnessOptions options;
    options.predictor = predictor;
    auto harness = MakeHarness({}, options);
    constexpr int64_t kTokens = 40;
    ASSERT_TRUE(harness->DecodeAll(0, Tokens(kTokens, 1)).ok());
    const FiringCounts decoded = harness->pipeline().TakeFirings();
    const std::vector<LayerStatistics> after_decoding = harness->runner().layer_totals();
    ASSERT_EQ(decoded.size(), 2u);
    ASSERT_TRUE(harness->Run({harness->Slice(1, 0, Tokens(kTokens, 1), v1::STEP_OUTPUT_LAST_LOGITS)}).ok());
    const FiringCounts prefilled = harness->pipeline().TakeFirings();
    for (size_t layer = 0; layer < decoded.size(); ++layer) {
      const int64_t active = after_decoding[layer].active;
      EXPECT_EQ(Sum(decoded[layer]), active);
      EXPECT_EQ(Sum(prefilled[layer]), harness->runner().layer_totals()[layer].active - active);
      ASSERT_EQ(decoded[layer].size(), 96u);
      for (size_t neuron = 0; neuron < 96; ++neuron) {
        EXPECT_LE(decoded[layer][neuron], kTokens);
        // The same tokens, one by one and together; a sum in another order may tip one over the edge.
        EXPECT_NEAR(decoded[layer][neuron], prefilled[layer][neuron], 1) << PredictorKindName(predictor);
      }
    }
    EXPECT_EQ(harness->pipeline().TakeFirings(), FiringCounts(2, std::vector<uint64_t>(96)))
        << "taken before";
  }
}

TEST(RunnerTest, ARowsLogitsDoNotDependOnItsCompany) {
  for (PredictorKind predictor : {PredictorKind::kAll, PredictorKind::kGate, PredictorKind::kSketch}) {
    HarnessOptions options;
    options.predictor = predictor;
    options.threads = 2;
    auto harness = MakeHarness({}, options);
    constexpr int kSequences = 7;
    std::vector<std::vector<float>> alone;
    for (int s = 0; s < kSequences; ++s) {
      alone.push_back(harness->DecodeAll(s, Tokens(5, s))->back());
    }
    auto together = MakeHarness({}, options);
    for (int64_t position = 0; position < 5; ++position) {
      std::vector<v1::SequenceSlice> slices;
      for (int s = 0; s < kSequences; ++s) {
        slices.push_back(together->Slice(s, position, {Tokens(5, s)[position]}, v1::STEP_OUTPUT_LAST_LOGITS));
      }
      const auto success = together->Run(slices);
      ASSERT_TRUE(success.ok()) << success.status();
      for (int s = 0; position == 4 && s < kSequences; ++s) {
        EXPECT_EQ(ParseLogits(success->outputs(s).logits()), alone[s]) << PredictorKindName(predictor);
      }
    }
  }
}

TEST(RunnerTest, SeveralDevicesComputeWhatOneDoes) {
  testing::TinyLlamaOptions tiny;
  tiny.layers = 5;
  for (PredictorKind predictor : {PredictorKind::kAll, PredictorKind::kGate, PredictorKind::kSketch}) {
    HarnessOptions options;
    options.predictor = predictor;
    const auto one = MakeHarness(tiny, options);
    options.division = {2, 1, 2};
    const auto three = MakeHarness(tiny, options);
    std::vector<v1::SequenceSlice> slices;
    const auto add = [&](int64_t position, const std::vector<uint32_t>& tokens, v1::StepOutput output) {
      const auto sequence = slices.size();
      slices.push_back(one->Slice(sequence, position, tokens, output));
    };
    add(0, Tokens(20, 1), v1::STEP_OUTPUT_LAST_LOGITS);
    add(0, Tokens(7, 2), v1::STEP_OUTPUT_LOG_PROBABILITIES);
    for (const uint32_t target : Tokens(7, 3)) slices.back().add_targets(target);
    add(0, {17}, v1::STEP_OUTPUT_LAST_LOGITS);
    for (int step = 0; step < 3; ++step) {  // the third is a repeat that a device may replay
      const auto expected = one->Run(slices);
      const auto actual = three->Run(slices);
      ASSERT_TRUE(expected.ok()) << expected.status();
      ASSERT_TRUE(actual.ok()) << actual.status();
      for (int i = 0; i < expected->outputs_size(); ++i) {
        EXPECT_EQ(expected->outputs(i).SerializeAsString(), actual->outputs(i).SerializeAsString());
      }
      EXPECT_EQ(expected->statistics().neurons_active(), actual->statistics().neurons_active());
    }
    EXPECT_EQ(one->pipeline().TakeFirings(), three->pipeline().TakeFirings());
  }
}

TEST(RunnerTest, ADeviceOfSeveralThatFailsFailsTheStep) {
  HarnessOptions options;
  options.division = {1, 1};
  auto harness = MakeHarness({}, options);
  harness->pipeline().BreakNext(DeviceFault::kOutOfMemory);
  const std::vector<v1::SequenceSlice> step = {harness->Slice(0, 0, {5}, v1::STEP_OUTPUT_LAST_LOGITS)};
  EXPECT_EQ(harness->Run(step).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(harness->Run(step).ok()) << "the next one finds nothing of it";
}

TEST(RunnerTest, ScoresEqualTheLogSoftmaxOfTheLogits) {
  HarnessOptions options;
  options.predictor = PredictorKind::kGate;
  auto harness = MakeHarness({}, options);
  const std::vector<uint32_t> tokens = Tokens(9, 4);
  const auto logits = harness->DecodeAll(0, tokens);
  ASSERT_TRUE(logits.ok());
  v1::SequenceSlice slice = harness->Slice(1, 0, tokens, v1::STEP_OUTPUT_LOG_PROBABILITIES);
  for (size_t i = 0; i < tokens.size(); ++i) slice.add_targets(tokens[(i + 1) % tokens.size()]);
  const auto success = harness->Run({slice});
  ASSERT_TRUE(success.ok()) << success.status();
  ASSERT_EQ(success->outputs(0).log_probabilities_size(), 9);
  for (int i = 0; i < 9; ++i) {
    double sum = 0;
    for (float logit : (*logits)[i]) sum += std::exp(double{logit});
    EXPECT_NEAR(success->outputs(0).log_probabilities(i), (*logits)[i][slice.targets(i)] - std::log(sum),
                1e-3);
  }
}

TEST(RunnerTest, ExactPredictorsAgreeAndCountWhatTheySkip) {
  HarnessOptions all, gate;
  gate.predictor = PredictorKind::kGate;
  auto dense = MakeHarness({}, all);
  auto sparse = MakeHarness({}, gate);
  const std::vector<uint32_t> tokens = Tokens(6, 9);
  const auto expected = dense->DecodeAll(0, tokens);
  const auto logits = sparse->DecodeAll(0, tokens);
  for (size_t row = 0; row < tokens.size(); ++row) {
    for (size_t i = 0; i < (*expected)[row].size(); ++i) {
      EXPECT_NEAR((*logits)[row][i], (*expected)[row][i], 1e-3);
    }
  }
  const auto step = sparse->Run({sparse->Slice(0, 6, {5}, v1::STEP_OUTPUT_LAST_LOGITS)});
  const v1::StepStatistics& statistics = step->statistics();
  EXPECT_TRUE(statistics.exact());
  EXPECT_EQ(statistics.neurons_total(), 2 * 96);
  EXPECT_EQ(statistics.neurons_computed(), statistics.neurons_active());
  EXPECT_EQ(statistics.hot_neurons_computed(), statistics.neurons_computed());
  EXPECT_GT(statistics.neurons_active(), 0);
  EXPECT_LT(statistics.neurons_active(), statistics.neurons_total());
}

TEST(RunnerTest, APredictorThatKeepsNothingChangesTheLogits) {
  HarnessOptions good, bad;
  good.predictor = bad.predictor = PredictorKind::kSketch;
  bad.threshold_shift = std::numeric_limits<float>::max();
  const std::vector<uint32_t> tokens = Tokens(4, 2);
  auto skipping = MakeHarness({}, bad);
  const auto without_ffn = skipping->DecodeAll(0, tokens);
  const auto with_ffn = MakeHarness({}, good)->DecodeAll(0, tokens);
  EXPECT_NE(without_ffn->back(), with_ffn->back());
  const auto step = skipping->Run({skipping->Slice(0, 4, {5}, v1::STEP_OUTPUT_NONE)});
  EXPECT_EQ(step->statistics().neurons_computed(), 0);
  EXPECT_FALSE(step->statistics().exact());
}

TEST(RunnerTest, PredictorsThatTheModelCannotHaveAreRefused) {
  testing::TinyLlamaOptions silu;
  silu.activation = "silu";
  for (PredictorKind kind : {PredictorKind::kGate, PredictorKind::kSketch, PredictorKind::kLowRank}) {
    const testing::Bytes bytes = testing::TinyLlama(silu);
    auto model = model::Model::FromFile(*gguf::File::Parse(bytes, "silu.gguf"));
    ASSERT_TRUE(model.ok());
    HarnessOptions options;
    options.predictor = kind;
    const auto harness = RunnerHarness::Create(*std::move(model), options);
    EXPECT_EQ(harness.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(harness.status().message()), HasSubstr("--predictor=all"));
  }
}

struct BadSlice {
  const char* field;
  void (*spoil)(v1::SequenceSlice&);
};

TEST(RunnerTest, AbsurdFieldsAreErrorsThatNameThem) {
  auto harness = MakeHarness({}, {});
  const BadSlice cases[] = {
      {"slices[0].tokens", [](v1::SequenceSlice& s) { s.clear_tokens(); }},
      {"slices[0].tokens", [](v1::SequenceSlice& s) { s.set_tokens(0, 320); }},
      {"slices[0].tokens", [](v1::SequenceSlice& s) { s.set_tokens(0, UINT32_MAX); }},
      {"slices[0].position", [](v1::SequenceSlice& s) { s.set_position(UINT32_MAX); }},
      {"slices[0].position", [](v1::SequenceSlice& s) { s.set_position(256); }},
      {"slices[0].block_table", [](v1::SequenceSlice& s) { s.clear_block_table(); }},
      {"slices[0].block_table", [](v1::SequenceSlice& s) { s.set_block_table(0, 128); }},
      {"slices[0].block_table", [](v1::SequenceSlice& s) { s.set_block_table(0, UINT32_MAX); }},
      {"slices[0].output", [](v1::SequenceSlice& s) { s.set_output(v1::STEP_OUTPUT_UNSPECIFIED); }},
      {"slices[0].targets", [](v1::SequenceSlice& s) { s.set_output(v1::STEP_OUTPUT_LOG_PROBABILITIES); }},
      {"slices[0].targets",
       [](v1::SequenceSlice& s) {
         s.set_output(v1::STEP_OUTPUT_LOG_PROBABILITIES);
         s.add_targets(320);
       }},
  };
  for (const BadSlice& bad : cases) {
    v1::SequenceSlice slice = harness->Slice(0, 0, {5}, v1::STEP_OUTPUT_LAST_LOGITS);
    bad.spoil(slice);
    const auto success = harness->Run({slice});
    EXPECT_EQ(success.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(success.status().message()), HasSubstr(bad.field));
  }
  EXPECT_EQ(harness->Run({}).status().code(), absl::StatusCode::kInvalidArgument);
  const std::vector<v1::SequenceSlice> crowd(33, harness->Slice(0, 0, {5}, v1::STEP_OUTPUT_NONE));
  EXPECT_THAT(std::string(harness->Run(crowd).status().message()), HasSubstr("33 decode rows"));
  EXPECT_THAT(
      std::string(
          harness->Run({harness->Slice(0, 0, Tokens(65, 1), v1::STEP_OUTPUT_NONE)}).status().message()),
      HasSubstr("65 prefill rows"));
}

}  // namespace
}  // namespace isotherm::gpu_worker
