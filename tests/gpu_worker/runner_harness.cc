#include "tests/gpu_worker/runner_harness.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#include "common/base/status_macros.h"
#include "gpu_worker/cuda/make_cuda_device.h"
#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {

namespace v1 = worker::v1;

namespace {

class DeviceEnvironment : public ::testing::Environment {
  void SetUp() override {
    const absl::Status status = MakeTestDevice(1, /*graphs=*/false).status();
    if (!status.ok()) GTEST_SKIP() << status;
  }
};
const ::testing::Environment* const kDeviceEnvironment =
    ::testing::AddGlobalTestEnvironment(new DeviceEnvironment);

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> MakeTestDevice(int threads, bool graphs, int number) {
  const char* const name = std::getenv("ISOTHERM_TEST_DEVICE");
  if (name == nullptr || std::string(name) == "host") {
    return std::make_unique<HostDevice>(HostDeviceOptions{.threads = threads, .look_ahead = true});
  }
  if (std::string(name) == "cuda") {
    CudaDeviceOptions options{
        .number = number, .loader_threads = threads, .graphs = graphs, .stream_rows = kStreamRows};
    absl::StatusOr<std::unique_ptr<Device>> device = MakeCudaDevice(options);
    if (device.ok() || number == 0) return device;
    options.number = 0;
    return MakeCudaDevice(options);
  }
  return absl::InvalidArgumentError("ISOTHERM_TEST_DEVICE: host and cuda are known");
}

absl::StatusOr<std::unique_ptr<RunnerHarness>> RunnerHarness::Create(std::unique_ptr<model::Model> model,
                                                                     const HarnessOptions& options) {
  auto harness = std::make_unique<RunnerHarness>();
  harness->model_ = std::move(model);
  const model::Hyperparameters& h = harness->model_->hyperparameters();
  RunnerOptions& runner = harness->options_;
  runner.context = h.trained_context;
  runner.kv_type = options.kv_type;
  runner.kv_tokens = options.kv_tokens;
  runner.kv_block_size = options.block_size;
  runner.max_prefill_rows = 64;
  runner.max_decode_rows = 32;
  runner.predictor = options.predictor;
  runner.micro_batches = options.micro_batches;
  std::vector<Stage> stages;
  for (const int64_t count : options.division.empty() ? std::vector<int64_t>{h.layers} : options.division) {
    const int64_t begin = stages.empty() ? 0 : stages.back().layers.end;
    if (options.make_device) {
      harness->devices_.push_back(options.make_device());
    } else {
      ISOTHERM_ASSIGN_OR_RETURN(
          harness->devices_.emplace_back(),
          MakeTestDevice(options.threads, /*graphs=*/true, static_cast<int>(stages.size())));
    }
    stages.push_back({harness->devices_.back().get(), {begin, begin + count}});
  }
  const PredictorOptions predictor{options.predictor, options.threshold_shift, runner.max_rows()};
  ISOTHERM_ASSIGN_OR_RETURN(
      harness->pipeline_,
      Pipeline::Load(
          *harness->model_, runner, options.placement.value_or(neuron::AllHot(h.layers, h.ffn)), stages,
          [&](const Stage& stage) {
            return MakePredictor(*harness->model_, predictor, stage.layers, *stage.device);
          },
          [] { return absl::OkStatus(); }));
  harness->runner_ = std::make_unique<Runner>(h, runner, harness->pipeline_.get());
  return harness;
}

std::vector<DeviceHotLayers> RunnerHarness::HotLayers() const {
  std::vector<DeviceHotLayers> layers;
  for (size_t i = 0; i < devices_.size(); ++i) layers.push_back({devices_[i].get(), pipeline_->HotLayers(i)});
  return layers;
}

v1::SequenceSlice RunnerHarness::Slice(uint64_t sequence, int64_t position,
                                       const std::vector<uint32_t>& tokens, v1::StepOutput output) const {
  v1::SequenceSlice slice;
  slice.set_sequence_id(sequence);
  slice.set_position(static_cast<uint32_t>(position));
  slice.mutable_tokens()->Add(tokens.begin(), tokens.end());
  slice.set_output(output);
  const int64_t end = position + static_cast<int64_t>(tokens.size());
  const int64_t blocks = (end + options_.kv_block_size - 1) / options_.kv_block_size;
  // Sequences take every eighth block, in descending order, so that a table is never the identity.
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t block = options_.kv_blocks() - 1 - (b * 8 + static_cast<int64_t>(sequence) % 8);
    slice.add_block_table(static_cast<uint32_t>(std::max<int64_t>(block, 0)));
  }
  return slice;
}

absl::StatusOr<v1::StepSuccess> RunnerHarness::Run(const std::vector<v1::SequenceSlice>& slices) {
  v1::StepRequest request;
  request.set_step_id(++step_);
  for (const v1::SequenceSlice& slice : slices) *request.add_slices() = slice;
  return runner_->Run(request);
}

absl::StatusOr<std::vector<std::vector<float>>> RunnerHarness::DecodeAll(
    uint64_t sequence, const std::vector<uint32_t>& tokens) {
  std::vector<std::vector<float>> logits;
  for (size_t i = 0; i < tokens.size(); ++i) {
    ISOTHERM_ASSIGN_OR_RETURN(
        const v1::StepSuccess success,
        Run({Slice(sequence, static_cast<int64_t>(i), {tokens[i]}, v1::STEP_OUTPUT_LAST_LOGITS)}));
    logits.push_back(ParseLogits(success.outputs(0).logits()));
  }
  return logits;
}

std::vector<float> ParseLogits(const std::string& bytes) {
  std::vector<float> logits(bytes.size() / sizeof(float));
  std::memcpy(logits.data(), bytes.data(), bytes.size());
  return logits;
}

}  // namespace isotherm::gpu_worker
