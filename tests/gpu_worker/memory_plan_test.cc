#include "gpu_worker/graph/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "gpu_worker/device/matrix.h"
#include "tests/gguf/tiny_llama.h"

namespace isotherm::gpu_worker {
namespace {

using ::testing::HasSubstr;

constexpr double kBandwidth = 2e10;

class MemoryPlanTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::TinyLlamaOptions tiny;
    tiny.activation_counts = true;
    bytes_ = testing::TinyLlama(tiny);
    auto model = model::Model::FromFile(*gguf::File::Parse(bytes_, "tiny.gguf"));
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    options_.context = 256;
    options_.kv_tokens = 256;
    options_.max_prefill_rows = 8;
    options_.max_decode_rows = 4;
  }

  int64_t DenseBytes() {
    options_.budget_bytes = int64_t{1} << 40;
    const auto plan = PlanMemory(*model_, options_, {model::EmbeddedProfile(*model_), std::nullopt});
    return plan->total() - plan->neurons.hot_bytes;
  }

  testing::Bytes bytes_;
  std::unique_ptr<model::Model> model_;
  RunnerOptions options_;
};

TEST_F(MemoryPlanTest, EverythingIsHotWithoutABudget) {
  const auto plan = PlanMemory(*model_, options_, {model::EmbeddedProfile(*model_), std::nullopt});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->neurons.placement.HotCount(), 2 * 96);
}

TEST_F(MemoryPlanTest, TheBudgetIsFilledAndNeverExceeded) {
  const int64_t dense = DenseBytes();
  int64_t last = -1;
  for (int64_t extra : {0, 1000, 20000, 60000, 1 << 20}) {
    options_.budget_bytes = dense + extra;
    const auto plan = PlanMemory(*model_, options_, {model::EmbeddedProfile(*model_), std::nullopt});
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_LE(plan->total(), *options_.budget_bytes);
    EXPECT_GE(plan->neurons.placement.HotCount(), last);
    last = plan->neurons.placement.HotCount();
  }
  EXPECT_EQ(last, 2 * 96);
}

TEST_F(MemoryPlanTest, StepsTakeAsLongAsReadingAndTheExchanges) {
  const auto seconds = [&](const neuron::Placement& placement, double bandwidth) {
    return PredictStepSeconds(*model_, model::EmbeddedProfile(*model_), placement, bandwidth).value();
  };
  const neuron::Placement hot = neuron::AllHot(2, 96);
  EXPECT_DOUBLE_EQ(seconds(hot, kBandwidth), 2 * seconds(hot, 2 * kBandwidth));
  EXPECT_GT(seconds(neuron::AllCold(2, 96), kBandwidth), seconds(hot, kBandwidth));
}

TEST_F(MemoryPlanTest, OftenFiringNeuronsComeFirst) {
  options_.budget_bytes = DenseBytes() + 40000;
  const auto plan = PlanMemory(*model_, options_, {model::EmbeddedProfile(*model_), std::nullopt});
  ASSERT_TRUE(plan.ok()) << plan.status();
  // The counts fall with the neuron's number, so each layer's hot set is a prefix.
  for (int64_t layer = 0; layer < 2; ++layer) {
    const std::vector<int32_t> hot = plan->neurons.placement.HotNeurons(layer);
    for (size_t i = 0; i < hot.size(); ++i) EXPECT_EQ(hot[i], static_cast<int32_t>(i));
  }
  EXPECT_GT(plan->neurons.placement.HotCount(), 0);
  EXPECT_LT(plan->neurons.placement.HotCount(), 2 * 96);
}

TEST_F(MemoryPlanTest, ABudgetBelowTheDensePartsNamesTheLeastThatWouldDo) {
  options_.budget_bytes = 1000;
  const auto plan = PlanMemory(*model_, options_, {model::EmbeddedProfile(*model_), std::nullopt});
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("before the first hot neuron"));
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("--vram-budget"));
}

TEST_F(MemoryPlanTest, DevicesGetALikePartOfTheBudget) {
  const PlacementSource source{model::EmbeddedProfile(*model_), std::nullopt};
  const auto unbounded = PlanMemory(*model_, options_, source, {.devices = {{}, {}}});
  ASSERT_TRUE(unbounded.ok()) << unbounded.status();
  ASSERT_EQ(unbounded->stages.size(), 2u);
  EXPECT_EQ(unbounded->stages[0].layers, (LayerRange{0, 1}));
  EXPECT_EQ(unbounded->stages[1].layers, (LayerRange{1, 2}));
  EXPECT_EQ(unbounded->neurons.placement.HotCount(), 2 * 96);

  options_.budget_bytes = 1000;
  const absl::Status status = PlanMemory(*model_, options_, source, {.devices = {{}, {}}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("on 2 devices"));

  const int64_t fullest = std::max(unbounded->stages[0].total(), unbounded->stages[1].total());
  options_.budget_bytes = 2 * (fullest - 10000);
  const auto bounded = PlanMemory(*model_, options_, source, {.devices = {{}, {}}});
  ASSERT_TRUE(bounded.ok()) << bounded.status();
  for (const StagePlan& stage : bounded->stages) EXPECT_LE(stage.total(), *options_.budget_bytes / 2);
  EXPECT_LT(bounded->neurons.placement.HotCount(), 2 * 96);
  EXPECT_EQ(bounded->neurons.coverage.size(), 2u);
}

TEST_F(MemoryPlanTest, TheCpuTakesLayersWhoseDensePartsDoNotFit) {
  const PlacementSource source{model::EmbeddedProfile(*model_), std::nullopt};
  const PlanDevices on{.devices = {{}}, .offload_to = DeviceMemoryTraits()};
  options_.budget_bytes = DenseBytes();
  const auto fits = PlanMemory(*model_, options_, source, on);
  ASSERT_TRUE(fits.ok()) << fits.status();
  EXPECT_EQ(fits->stages.size(), 1u);

  options_.budget_bytes = *options_.budget_bytes - 1;
  EXPECT_FALSE(PlanMemory(*model_, options_, source).ok());
  const auto offloaded = PlanMemory(*model_, options_, source, on);
  ASSERT_TRUE(offloaded.ok()) << offloaded.status();
  ASSERT_EQ(offloaded->stages.size(), 2u);
  EXPECT_TRUE(offloaded->stages[0].offloaded);
  EXPECT_EQ(offloaded->stages[0].layers, (LayerRange{0, 1}));
  EXPECT_EQ(offloaded->neurons.placement.HotCount(0), 0);
  EXPECT_GT(offloaded->neurons.placement.HotCount(1), 0) << "what attention left";
  EXPECT_LE(offloaded->total(), *options_.budget_bytes);

  options_.budget_bytes = 1000;
  const absl::Status status = PlanMemory(*model_, options_, source, on).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("before the first hot neuron"));
}

TEST_F(MemoryPlanTest, MoreDevicesThanLayersAreRefused) {
  const absl::Status status = PlanMemory(*model_, options_, {}, {.devices = {{}, {}, {}}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("3 devices"));
}

TEST_F(MemoryPlanTest, WhatAllocationsLoseToRoundingComesBeforeHotNeurons) {
  constexpr int64_t kUnit = 4096;
  const PlacementSource source{model::EmbeddedProfile(*model_), std::nullopt};
  const auto lost = [](int64_t bytes) { return bytes < kUnit / 2 ? 0 : (kUnit - bytes % kUnit) % kUnit; };
  options_.budget_bytes.reset();
  for (const PredictorKind predictor : {PredictorKind::kAll, PredictorKind::kGate}) {
    options_.predictor = predictor;
    const auto plain = PlanMemory(*model_, options_, source);
    const auto rounded = PlanMemory(*model_, options_, source, {.devices = {{.allocation_unit = kUnit}}});
    ASSERT_TRUE(plain.ok() && rounded.ok()) << plain.status() << rounded.status();
    int64_t expected = 0;
    for (const model::Layer& layer : model_->layers()) {
      expected += kUnit / 2 + lost(plain->bytes(MemoryPurpose::kKvCache) / 2);
      for (const model::Affine* matrix : {&layer.q, &layer.k, &layer.v, &layer.attention_output}) {
        expected += lost(DeviceMatrixBytes(matrix->weight));
      }
      if (predictor == PredictorKind::kGate) expected += lost(DeviceMatrixBytes(layer.activated()));
    }
    EXPECT_EQ(plain->bytes(MemoryPurpose::kDevice), 0);
    EXPECT_EQ(rounded->bytes(MemoryPurpose::kDevice), expected);
  }
}

TEST_F(MemoryPlanTest, APlacementIsTakenAsItIsWhereItFits) {
  neuron::Placement placement = neuron::AllCold(2, 96);
  for (int64_t neuron : {3, 70, 95}) neuron::SetBit(placement.hot[1].data(), neuron);
  const PlacementSource source{model::EmbeddedProfile(*model_), placement};
  const int64_t dense = DenseBytes();
  options_.budget_bytes.reset();
  const auto unbounded = PlanMemory(*model_, options_, source);
  ASSERT_TRUE(unbounded.ok()) << unbounded.status();
  EXPECT_EQ(unbounded->neurons.placement.hot, placement.hot);
  EXPECT_EQ(unbounded->neurons.coverage[0], 0);
  EXPECT_GT(unbounded->neurons.coverage[1], 0);

  options_.budget_bytes = dense + unbounded->neurons.hot_bytes;
  EXPECT_TRUE(PlanMemory(*model_, options_, source).ok());
  options_.budget_bytes = *options_.budget_bytes - 1;
  const absl::Status status = PlanMemory(*model_, options_, source).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("--placement"));
}

}  // namespace
}  // namespace isotherm::gpu_worker
