#ifndef ISOTHERM_TESTS_GPU_WORKER_RUNNER_HARNESS_H_
#define ISOTHERM_TESTS_GPU_WORKER_RUNNER_HARNESS_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/graph/hot_set.h"
#include "gpu_worker/graph/runner.h"

namespace isotherm::gpu_worker {

struct HarnessOptions {
  PredictorKind predictor = PredictorKind::kAll;
  kernels::KvType kv_type = kernels::KvType::kF16;
  int64_t kv_tokens = 2048;
  int64_t block_size = 16;
  int threads = 1;
  float threshold_shift = 0;
  std::optional<neuron::Placement> placement;  // absent: every neuron hot
  int64_t micro_batches = 1;                   // MicroBatchPolicy's `fixed`
  // How many layers each of several devices holds; empty: one device holds all.
  std::vector<int64_t> division;
  // Null: MakeTestDevice.
  std::function<std::unique_ptr<Device>()> make_device;
};

// From so many rows on the test device brings cold neurons over, if it can.
inline constexpr int64_t kStreamRows = 24;

// The device that $ISOTHERM_TEST_DEVICE names, `host` where it is unset: the same tests hold for every
// device. Where this machine lacks it, all tests of the binary are skipped.
// `graphs`: passes of one shape repeat the same operators, so that a device may replay them. `number`: which
// GPU; the first one where there are fewer.
absl::StatusOr<std::unique_ptr<Device>> MakeTestDevice(int threads, bool graphs, int number = 0);

// A runner on the test device.
class RunnerHarness {
 public:
  static absl::StatusOr<std::unique_ptr<RunnerHarness>> Create(std::unique_ptr<model::Model> model,
                                                               const HarnessOptions& options);

  // One slice of sequence `sequence` (which owns the KV blocks after those of the sequences below it).
  worker::v1::SequenceSlice Slice(uint64_t sequence, int64_t position, const std::vector<uint32_t>& tokens,
                                  worker::v1::StepOutput output) const;
  absl::StatusOr<worker::v1::StepSuccess> Run(const std::vector<worker::v1::SequenceSlice>& slices);
  // Logits after tokens[i], for every i, each from a decode step of its own.
  absl::StatusOr<std::vector<std::vector<float>>> DecodeAll(uint64_t sequence,
                                                            const std::vector<uint32_t>& tokens);

  // Where the cold neurons are computed; the channel outlives the runs.
  void SetChannel(exchange::Channel* channel, uint64_t placement_epoch) {
    pipeline_->SetChannel(channel, placement_epoch);
  }

  const model::Model& model() const { return *model_; }
  const RunnerOptions& options() const { return options_; }
  Pipeline& pipeline() { return *pipeline_; }
  Runner& runner() { return *runner_; }
  // For HotSet.
  std::vector<DeviceHotLayers> HotLayers() const;

 private:
  std::unique_ptr<model::Model> model_;
  RunnerOptions options_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::unique_ptr<Pipeline> pipeline_;
  std::unique_ptr<Runner> runner_;
  uint64_t step_ = 0;
};

std::vector<float> ParseLogits(const std::string& bytes);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_TESTS_GPU_WORKER_RUNNER_HARNESS_H_
