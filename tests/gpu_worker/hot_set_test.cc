// Neurons that change places between the device and a CPU worker while both serve.

#include "gpu_worker/graph/hot_set.h"

#include <gtest/gtest.h>

#include "tests/cpu_worker/harness.h"
#include "tests/gguf/fixture.h"
#include "tests/gpu_worker/reference.h"
#include "tests/gpu_worker/runner_harness.h"

namespace isotherm::gpu_worker {
namespace {

absl::Status ReadFrom(cpu_worker::RunningWorker& worker, int64_t layer, absl::Span<const int32_t> neurons,
                      uint8_t* out) {
  worker::v1::ReadNeuronsRequest request;
  request.set_model_digest(worker.model().digest());
  request.set_layer(static_cast<uint32_t>(layer));
  request.mutable_neurons()->Add(neurons.begin(), neurons.end());
  grpc::ClientContext context;
  worker::v1::ReadNeuronsResponse response;
  if (!worker.stub().ReadNeurons(&context, request, &response).ok()) return absl::UnknownError("ReadNeurons");
  std::copy(response.bundles().begin(), response.bundles().end(), out);
  return absl::OkStatus();
}

class HotSetTest : public ::testing::Test {
 protected:
  explicit HotSetTest(std::string fixture = "llama-fatrelu-f32") : fixture_(std::move(fixture)) {}
  void SetUp() override {
    worker_.AwaitReady();
    placement_ = cpu_worker::ThirdHot(worker_.model().hyperparameters());
    ASSERT_TRUE(worker_.Apply(worker_.PlacementRequest(placement_)).ok());
    auto channel =
        exchange::Connect(&worker_.stub(), worker_.ClientFor(placement_, exchange::Transport::kAuto));
    ASSERT_TRUE(channel.ok()) << channel.status();
    channel_ = *std::move(channel);
  }
  void TearDown() override {
    if (harness_ != nullptr) harness_->SetChannel(nullptr, 0);
  }
  void MakeRunner(std::vector<int64_t> division = {}) {
    HarnessOptions options;
    options.division = std::move(division);
    options.predictor = PredictorKind::kGate;
    options.kv_type = kernels::KvType::kF32;
    options.placement = placement_;
    auto harness =
        RunnerHarness::Create(*model::Model::Open(testing::FixturePath(fixture_ + ".gguf")), options);
    ASSERT_TRUE(harness.ok()) << harness.status();
    harness_ = *std::move(harness);
    harness_->SetChannel(channel_.get(), placement_.epoch);
  }
  std::unique_ptr<HotSet> MakeHotSet(int64_t staging_bytes) {
    auto hot_set = HotSet::Create(placement_, harness_->HotLayers(), staging_bytes);
    if (!hot_set.ok()) ADD_FAILURE() << hot_set.status();
    return *std::move(hot_set);
  }
  // Every hot neuron makes way for its successor.
  std::vector<neuron::Move> Moves() const {
    std::vector<neuron::Move> moves;
    for (int64_t layer = 0; layer < placement_.layers(); ++layer) {
      for (const int32_t hot : placement_.HotNeurons(layer)) {
        if (hot + 1 < placement_.ffn) moves.push_back({layer, hot, hot + 1});
      }
    }
    return moves;
  }
  void Make(HotSet& hot_set, absl::Span<const neuron::Move> moves) {
    const auto read = [&](int64_t layer, absl::Span<const int32_t> neurons, uint8_t* out) {
      return ReadFrom(worker_, layer, neurons, out);
    };
    ASSERT_TRUE(hot_set.Stage(moves, read).ok());
    placement_ = neuron::AfterMoves(placement_, moves);
    ASSERT_TRUE(worker_.Apply(worker_.PlacementRequest(placement_)).ok());
    ASSERT_TRUE(hot_set.Commit().ok());
    harness_->SetChannel(channel_.get(), placement_.epoch);
  }
  // Decodes the reference's tokens, each a pass of one shape, and checks the logits; returns the hot and cold
  // neurons computed by layer.
  std::vector<std::pair<int64_t, int64_t>> CheckLogits() {
    const Expected expected = ReadExpected(fixture_ + ".expected.bin");
    const std::vector<LayerStatistics> before = harness_->runner().layer_totals();
    const auto logits = harness_->DecodeAll(1, expected.tokens);
    EXPECT_TRUE(logits.ok()) << logits.status();
    std::vector<std::pair<int64_t, int64_t>> computed;
    if (!logits.ok()) return computed;
    for (size_t row = 0; row < expected.logits.size(); ++row) {
      EXPECT_LT(RelativeError((*logits)[row], expected.logits[row]), Tolerance(harness_->model()));
    }
    for (size_t l = 0; l < before.size(); ++l) {
      const LayerStatistics& after = harness_->runner().layer_totals()[l];
      computed.emplace_back(after.hot_computed - before[l].hot_computed,
                            after.cold_computed - before[l].cold_computed);
    }
    return computed;
  }

  const std::string fixture_;
  cpu_worker::RunningWorker worker_{exchange::Transport::kAuto, testing::FixturePath(fixture_ + ".gguf")};
  neuron::Placement placement_;
  std::unique_ptr<exchange::Channel> channel_;
  std::unique_ptr<RunnerHarness> harness_;
};

TEST_F(HotSetTest, AMovedHotSetComputesWhatAFreshOneDoes) {
  ASSERT_NO_FATAL_FAILURE(MakeRunner());
  const auto before = CheckLogits();
  const std::unique_ptr<HotSet> hot_set = MakeHotSet(1 << 22);
  const std::vector<neuron::Move> moves = Moves();
  ASSERT_EQ(hot_set->Fitting(moves), static_cast<int64_t>(moves.size()));
  ASSERT_NO_FATAL_FAILURE(Make(*hot_set, moves));
  const auto moved = CheckLogits();
  EXPECT_NE(moved, before);

  ASSERT_NO_FATAL_FAILURE(MakeRunner());  // with the placement that the moves led to
  EXPECT_EQ(CheckLogits(), moved);
}

TEST_F(HotSetTest, NeuronsComeAndGoASmallBatchAtATime) {
  ASSERT_NO_FATAL_FAILURE(MakeRunner());
  const auto before = CheckLogits();
  const std::unique_ptr<HotSet> hot_set = MakeHotSet(1);
  std::vector<neuron::Move> moves = Moves();
  moves.resize(5);
  for (absl::Span<const neuron::Move> left = moves; !left.empty();) {
    const int64_t count = hot_set->Fitting(left);
    ASSERT_EQ(count, 1) << "room for one bundle";
    ASSERT_NO_FATAL_FAILURE(Make(*hot_set, left.first(count)));
    left.remove_prefix(count);
  }
  EXPECT_NE(CheckLogits(), before);
  for (const neuron::Move& move : moves) {
    ASSERT_NO_FATAL_FAILURE(Make(*hot_set, {{move.layer, move.promoted, move.demoted}}));
  }
  EXPECT_EQ(CheckLogits(), before);
}

class TwoLayerHotSetTest : public HotSetTest {
 protected:
  TwoLayerHotSetTest() : HotSetTest("mistral-relu-f16") {}
};

TEST_F(TwoLayerHotSetTest, LayersOnTwoDevicesMoveAsThoseOnOne) {
  const neuron::Placement start = placement_;
  const std::vector<neuron::Move> moves = Moves();
  ASSERT_NO_FATAL_FAILURE(MakeRunner());
  ASSERT_NO_FATAL_FAILURE(Make(*MakeHotSet(1 << 22), moves));
  const auto moved = CheckLogits();

  placement_ = start;
  placement_.epoch = 100;
  ASSERT_TRUE(worker_.Apply(worker_.PlacementRequest(placement_)).ok());
  ASSERT_NO_FATAL_FAILURE(MakeRunner({1, 1}));
  const std::unique_ptr<HotSet> hot_set = MakeHotSet(1 << 22);
  ASSERT_EQ(hot_set->Fitting(moves), static_cast<int64_t>(moves.size()));
  ASSERT_NO_FATAL_FAILURE(Make(*hot_set, moves));
  EXPECT_EQ(CheckLogits(), moved);
}

TEST_F(HotSetTest, WhatCouldNotBeReadMovesNothing) {
  ASSERT_NO_FATAL_FAILURE(MakeRunner());
  const auto before = CheckLogits();
  const std::unique_ptr<HotSet> hot_set = MakeHotSet(1 << 22);
  const auto fails = [](int64_t, absl::Span<const int32_t>, uint8_t*) {
    return absl::UnavailableError("gone");
  };
  EXPECT_EQ(hot_set->Stage(Moves(), fails), absl::UnavailableError("gone"));
  EXPECT_TRUE(hot_set->Commit().ok());
  EXPECT_EQ(CheckLogits(), before);
}

}  // namespace
}  // namespace isotherm::gpu_worker
