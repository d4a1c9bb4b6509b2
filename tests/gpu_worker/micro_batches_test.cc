// Decode passes in two micro-batches: when they are made, and that nothing but time depends on them.

#include <gtest/gtest.h>

#include "common/neuron/mask.h"
#include "tests/cpu_worker/harness.h"
#include "tests/gguf/fixture.h"
#include "tests/gpu_worker/runner_harness.h"

namespace isotherm::gpu_worker {
namespace {

// Records trials of passes of `rows` rows that take `one` ms with one micro-batch, `wait` of them waiting,
// and `two` ms with two; the choice afterwards.
int64_t AfterTrials(MicroBatchPolicy& policy, int64_t rows, double one, double wait, double two) {
  for (int64_t pass = 0; pass < 2 * MicroBatchPolicy::kTrialPasses; ++pass) {
    const double taken = policy.Choose(rows) == 1 ? one : two;
    policy.Record(rows, absl::Milliseconds(taken), absl::Milliseconds(wait));
  }
  return policy.Choose(rows);
}

TEST(MicroBatchPolicyTest, TakesTheFasterWay) {
  struct Case {
    const char* what;
    double one, wait, two;
    int64_t chosen;
  };
  for (const Case& each :
       {Case{"a slow wire", 10, 7, 6, 2}, Case{"weights read twice cost more", 10, 4, 12, 1},
        Case{"as fast", 10, 4, 10, 1}, Case{"nobody waits, though two were faster", 10, 0.5, 6, 1},
        Case{"no CPU worker", 10, 0, 6, 1}}) {
    MicroBatchPolicy policy(/*fixed=*/0, /*most=*/2);
    EXPECT_EQ(AfterTrials(policy, 4, each.one, each.wait, each.two), each.chosen) << each.what;
  }
}

TEST(MicroBatchPolicyTest, OneSlowPassDecidesNothing) {
  MicroBatchPolicy policy(0, 2);
  for (int64_t pass = 0; pass < 2 * MicroBatchPolicy::kTrialPasses; ++pass) {
    const double taken = pass % 3 == 0 ? 500 : policy.Choose(4) == 1 ? 10 : 7;
    policy.Record(4, absl::Milliseconds(taken), absl::Milliseconds(5));
  }
  EXPECT_EQ(policy.Choose(4), 2);
}

TEST(MicroBatchPolicyTest, DecidesForEachNumberOfRowsAndAgainLater) {
  MicroBatchPolicy policy(0, 2);
  EXPECT_EQ(AfterTrials(policy, 8, 10, 7, 6), 2);
  EXPECT_EQ(policy.Choose(4), 1) << "never tried";
  EXPECT_EQ(AfterTrials(policy, 4, 10, 7, 12), 1);
  for (int64_t pass = 0; pass < MicroBatchPolicy::kHoldPasses; ++pass) {
    EXPECT_EQ(policy.Choose(8), 2);
    policy.Record(8, absl::Milliseconds(100), absl::Milliseconds(0));
  }
  EXPECT_EQ(policy.Choose(8), 1) << "both ways are tried again";
  EXPECT_EQ(AfterTrials(policy, 8, 10, 7, 11), 1);
}

TEST(MicroBatchPolicyTest, DividesNoMoreThanItMay) {
  MicroBatchPolicy measured(0, 2);
  EXPECT_EQ(AfterTrials(measured, 1, 10, 9, 1), 1) << "a row cannot be divided";
  EXPECT_EQ(AfterTrials(measured, MicroBatchPolicy::kMostRows, 10, 9, 1), 2);
  EXPECT_EQ(AfterTrials(measured, MicroBatchPolicy::kMostRows + 1, 10, 9, 1), 1)
      << "sums would be ordered otherwise";
  const MicroBatchPolicy asked(2, 2), device_takes_one(2, 1), never(1, 2);
  EXPECT_EQ(asked.Choose(1), 1);
  EXPECT_EQ(asked.Choose(2), 2);
  EXPECT_EQ(asked.Choose(100), 2);
  EXPECT_EQ(device_takes_one.Choose(8), 1);
  EXPECT_EQ(never.Choose(8), 1);
}

struct EqualityCase {
  const char* model;
  PredictorKind predictor;
  exchange::Transport transport;
};

void PrintTo(const EqualityCase& each, std::ostream* out) {
  *out << each.model << " " << exchange::TransportName(each.transport);
}

// A worker, and runners whose cold neurons it computes: two thirds, but of the first of several layers none.
class MicroBatchesTest : public ::testing::TestWithParam<EqualityCase> {
 protected:
  static neuron::Placement FirstLayerHot(const model::Hyperparameters& model) {
    neuron::Placement placement = cpu_worker::ThirdHot(model);
    if (model.layers > 1) neuron::SetAll(placement.hot.front().data(), model.ffn);
    return placement;
  }
  void SetUp() override {
    worker_.AwaitReady();
    ASSERT_TRUE(worker_.Apply(worker_.PlacementRequest(placement_)).ok());
  }

  std::unique_ptr<RunnerHarness> MakeRunner(int64_t micro_batches) {
    HarnessOptions options;
    options.predictor = GetParam().predictor;
    options.placement = placement_;
    options.micro_batches = micro_batches;
    auto model = model::Model::Open(path_);
    EXPECT_TRUE(model.ok()) << model.status();
    auto harness = RunnerHarness::Create(*std::move(model), options);
    EXPECT_TRUE(harness.ok()) << harness.status();
    return *std::move(harness);
  }
  std::unique_ptr<exchange::Channel> Connect() {
    auto channel = exchange::Connect(&worker_.stub(), worker_.ClientFor(placement_, GetParam().transport));
    EXPECT_TRUE(channel.ok()) << channel.status();
    EXPECT_EQ((*channel)->transport(), GetParam().transport);
    return *std::move(channel);
  }
  // The logits of `sequences` sequences after a few steps.
  static std::vector<std::vector<float>> Decode(RunnerHarness& runner, uint64_t sequences) {
    std::vector<std::vector<float>> logits;
    for (int64_t position = 0; position < 4; ++position) {
      std::vector<worker::v1::SequenceSlice> slices;
      for (uint64_t s = 0; s < sequences; ++s) {
        const auto token = static_cast<uint32_t>(3 + 7 * s + 31 * static_cast<uint64_t>(position));
        slices.push_back(runner.Slice(s, position, {token}, worker::v1::STEP_OUTPUT_LAST_LOGITS));
      }
      const auto success = runner.Run(slices);
      EXPECT_TRUE(success.ok()) << success.status();
      if (!success.ok()) return {};
      for (const auto& output : success->outputs()) logits.push_back(ParseLogits(output.logits()));
    }
    return logits;
  }

  const std::string path_ = testing::FixturePath(std::string(GetParam().model) + ".gguf");
  cpu_worker::RunningWorker worker_{GetParam().transport, path_};
  const neuron::Placement placement_ = FirstLayerHot(worker_.model().hyperparameters());
};

TEST_P(MicroBatchesTest, LogitsAreTheSame) {
  for (const uint64_t sequences : {2, 3, 8}) {
    std::vector<std::vector<float>> together;
    for (const int64_t micro_batches : {1, 2}) {
      const auto runner = MakeRunner(micro_batches);
      const auto channel = Connect();
      runner->SetChannel(channel.get(), placement_.epoch);
      const std::vector<std::vector<float>> logits = Decode(*runner, sequences);
      EXPECT_EQ(runner->runner().last_micro_batches(), micro_batches);
      EXPECT_EQ(static_cast<int64_t>(runner->runner().last_exchange_latencies().size()),
                micro_batches * std::max<int64_t>(1, runner->model().hyperparameters().layers - 1));
      if (micro_batches == 1) together = logits;
      EXPECT_EQ(logits, together) << sequences << " sequences, " << micro_batches << " micro-batches";
    }
  }
}

TEST_P(MicroBatchesTest, AStepOutlivesTheWorkerThatItLost) {
  const auto runner = MakeRunner(2);
  const auto together = MakeRunner(1);
  auto channel = Connect();
  together->SetChannel(channel.get(), placement_.epoch);
  const std::vector<std::vector<float>> expected = Decode(*together, 4);
  runner->SetChannel(channel.get(), placement_.epoch);
  std::vector<worker::v1::SequenceSlice> slices;
  for (uint64_t s = 0; s < 4; ++s) slices.push_back(runner->Slice(s, 0, {3}, worker::v1::STEP_OUTPUT_NONE));
  ASSERT_TRUE(runner->Run(slices).ok());
  EXPECT_FALSE(channel->Fail(absl::UnavailableError("the CPU worker is gone")).ok());
  EXPECT_EQ(runner->Run(slices).status(), absl::UnavailableError("the CPU worker is gone"));
  together->SetChannel(nullptr, 0);
  runner->SetChannel(nullptr, 0);
  channel = Connect();
  runner->SetChannel(channel.get(), placement_.epoch);
  EXPECT_EQ(Decode(*runner, 4), expected);
}

INSTANTIATE_TEST_SUITE_P(
    Models, MicroBatchesTest,
    ::testing::Values(
        EqualityCase{"llama-fatrelu-f32", PredictorKind::kGate, exchange::Transport::kSharedMemory},
        EqualityCase{"opt-relu-q8_0", PredictorKind::kGate, exchange::Transport::kInline},
        EqualityCase{"falcon7b-relu-f32", PredictorKind::kSketch, exchange::Transport::kInline},
        EqualityCase{"bamboo-powerinfer-q4_0", PredictorKind::kLowRank, exchange::Transport::kSharedMemory}));

}  // namespace
}  // namespace isotherm::gpu_worker
