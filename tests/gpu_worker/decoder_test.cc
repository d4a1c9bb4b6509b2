// What the layer graph asks of a device, by family: the memory that was planned, and operators in the right
// order.

#include <gtest/gtest.h>

#include <array>

#include "gpu_worker/host/host_device.h"
#include "tests/gguf/fixture.h"
#include "tests/gpu_worker/runner_harness.h"

namespace isotherm::gpu_worker {
namespace {

struct Record {
  std::array<int64_t, kMemoryPurposes> bytes = {};
  std::string operators;  // 'A' for Attention, 'S' for SendCold, 'H' for HotFfn, 'M' for MergeCold
};

// A host device that notes what it is asked for.
class RecordingDevice final : public HostDevice {
 public:
  explicit RecordingDevice(Record* record) : HostDevice({.threads = 1}), record_(*record) {}

  absl::StatusOr<Buffer> Allocate(int64_t bytes, MemoryPurpose purpose) override {
    record_.bytes[static_cast<int>(purpose)] += bytes;
    return HostDevice::Allocate(bytes, purpose);
  }
  void Attention(const kernels::PagedKv& kv, const float* q, int64_t heads, float scale,
                 float* out) override {
    record_.operators += 'A';
    HostDevice::Attention(kv, q, heads, scale, out);
  }
  void SendCold(const FfnCall& call, const HotLayer& hot) override {
    record_.operators += 'S';
    HostDevice::SendCold(call, hot);
  }
  void HotFfn(const FfnCall& call, const HotLayer& hot, float* y) override {
    record_.operators += 'H';
    HostDevice::HotFfn(call, hot, y);
  }
  void MergeCold(const FfnCall& call, const HotLayer& hot, float* y) override {
    record_.operators += 'M';
    HostDevice::MergeCold(call, hot, y);
  }

 private:
  Record& record_;
};

// On as many devices as there are counts of layers, or on one.
std::unique_ptr<RunnerHarness> Load(const std::string& fixture, PredictorKind predictor, Record* records,
                                    const std::vector<int64_t>& division = {}, int64_t micro_batches = 1) {
  HarnessOptions options;
  options.predictor = predictor;
  options.division = division;
  options.micro_batches = micro_batches;
  options.make_device = [&records] { return std::make_unique<RecordingDevice>(records++); };
  auto model = model::Model::Open(testing::FixturePath(fixture + ".gguf"));
  EXPECT_TRUE(model.ok()) << model.status();
  auto harness = RunnerHarness::Create(*std::move(model), options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  return *std::move(harness);
}

TEST(DecoderTest, AllocatesWhatWasPlanned) {
  for (const auto& [fixture, predictor] : {std::pair{"gqa-relu-q4_0", PredictorKind::kGate},
                                           {"llama3-silu-f32", PredictorKind::kAll},
                                           {"powerinfer-rank48-f32", PredictorKind::kLowRank},
                                           {"mistral-drelu-q8_0", PredictorKind::kSketch},
                                           {"qwen2-silu-q8_0", PredictorKind::kAll},
                                           {"nemotron-relu2-f16", PredictorKind::kGate},
                                           {"falcon7b-relu-f32", PredictorKind::kGate},
                                           {"falcon40b-powerinfer-f16", PredictorKind::kLowRank},
                                           {"opt-relu-f32", PredictorKind::kSketch},
                                           {"opt-relu-q8_0", PredictorKind::kGate}}) {
    Record record;
    const auto harness = Load(fixture, predictor, &record);
    const absl::StatusOr<MemoryPlan> plan =
        PlanMemory(harness->model(), harness->options(), PlacementSource());
    ASSERT_TRUE(plan.ok()) << plan.status();
    for (int i = 0; i < kMemoryPurposes; ++i) {
      EXPECT_EQ(record.bytes[i], plan->stages[0].bytes[i])
          << fixture << ", " << MemoryPurposeName(static_cast<MemoryPurpose>(i));
    }
  }
}

TEST(DecoderTest, AllocatesWhatWasPlannedForEachDevice) {
  for (const auto& [fixture, predictor] : {std::pair{"minicpm-relu-q4_0", PredictorKind::kGate},
                                           {"falcon40b-powerinfer-f16", PredictorKind::kLowRank},
                                           {"qwen2-silu-q8_0", PredictorKind::kAll},
                                           {"opt-relu-q8_0", PredictorKind::kSketch}}) {
    std::array<Record, 2> records;
    const auto harness = Load(fixture, predictor, records.data(), {1, 1});
    const absl::StatusOr<MemoryPlan> plan =
        PlanMemory(harness->model(), harness->options(), PlacementSource(), {.devices = {{}, {}}});
    ASSERT_TRUE(plan.ok()) << plan.status();
    for (size_t device = 0; device < records.size(); ++device) {
      for (int i = 0; i < kMemoryPurposes; ++i) {
        EXPECT_EQ(records[device].bytes[i], plan->stages[device].bytes[i])
            << fixture << ", device " << device << ", " << MemoryPurposeName(static_cast<MemoryPurpose>(i));
      }
    }
  }
}

// Of a decode step of so many sequences.
std::string OperatorsOf(const std::string& fixture, int64_t sequences = 1, int64_t micro_batches = 1) {
  Record record;
  const auto harness = Load(fixture, PredictorKind::kAll, &record, {}, micro_batches);
  std::vector<worker::v1::SequenceSlice> slices;
  for (int64_t i = 0; i < sequences; ++i) {
    slices.push_back(harness->Slice(i, 0, {1}, worker::v1::STEP_OUTPUT_LAST_LOGITS));
  }
  const auto success = harness->Run(slices);
  EXPECT_TRUE(success.ok()) << success.status();
  return record.operators;
}

TEST(DecoderTest, ColdWorkLeavesBeforeAnAttentionThatItDoesNotNeed) {
  EXPECT_EQ(OperatorsOf("falcon7b-gelu-f16"), "SAHMSAHM");
  EXPECT_EQ(OperatorsOf("falcon40b-relu-f32"), "SAHM");
  EXPECT_EQ(OperatorsOf("opt-relu-q8_0"), "ASHMASHM");
  EXPECT_EQ(OperatorsOf("mistral-relu-f16"), "ASHMASHM");
}

TEST(DecoderTest, AMicroBatchIsComputedWhileTheOtherIsAway) {
  EXPECT_EQ(OperatorsOf("opt-relu-q8_0", 3, 2), "ASHASHMASHMASHMM");
  EXPECT_EQ(OperatorsOf("falcon7b-gelu-f16", 2, 2), "SAHSAHMSAHMSAHMM");
  EXPECT_EQ(OperatorsOf("opt-relu-q8_0", 1, 2), "ASHMASHM") << "one row cannot be divided";
}

}  // namespace
}  // namespace isotherm::gpu_worker
