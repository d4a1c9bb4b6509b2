#include "gpu_worker/service/engine.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/base/round_up.h"
#include "common/base/status_macros.h"
#include "common/kernels/row_kernels.h"
#include "common/neuron/gpu_index.h"
#include "common/observe/log.h"
#include "common/rpc/server.h"
#include "gpu_worker/predict/remote_predictor.h"
#include "gpu_worker/service/next_step.h"
#include "gpu_worker/service/step_metrics.h"

namespace isotherm::gpu_worker {
namespace {

// Contexts beyond this are asked for, not assumed: their KV cache would be the larger part of small machines'
// memory.
constexpr int64_t kDefaultContext = 4096;
constexpr int64_t kDefaultSequences = 16;
// Half of what a message may have leaves room for everything else in it.
constexpr int64_t kLogitBytes = rpc::kDefaultMaxMessageBytes / 2;
// Collecting takes milliseconds, one message of eight bytes a neuron: a thousandth of this.
constexpr absl::Duration kCollectInterval = absl::Seconds(10);
// Neurons on their way into the hot set: large enough for full speed over PCIe, small beside the budget and
// beside what a step reads.
constexpr int64_t kHotStagingBytes = int64_t{4} << 20;
constexpr int64_t kHotStagingShare = 64;  // one part in so many of the budget, at most

absl::StatusOr<RunnerOptions> Complete(const EngineOptions& options, const model::Model& model) {
  const model::Hyperparameters& h = model.hyperparameters();
  RunnerOptions runner = options.runner;
  if (runner.context == 0) runner.context = std::min(h.trained_context, kDefaultContext);
  if (runner.context < 1 || runner.context > h.trained_context) {
    return absl::InvalidArgumentError(absl::StrCat("--ctx ", runner.context, ": '", model.DisplayName(),
                                                   "' was trained on ", h.trained_context, " tokens"));
  }
  if (runner.kv_tokens == 0) runner.kv_tokens = kDefaultSequences * runner.context;
  runner.kv_tokens = base::RoundUp(runner.kv_tokens, runner.kv_block_size);
  if (runner.kv_tokens < runner.context) {
    return absl::InvalidArgumentError(absl::StrCat("--kv-tokens ", runner.kv_tokens,
                                                   " cannot hold one sequence of --ctx ", runner.context));
  }
  if (runner.kv_type == kernels::KvType::kQ8_0 && h.head_dim % 32 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-type=q8_0 needs a head size that is a multiple of 32; this model's is ",
                     h.head_dim, ". Use f16"));
  }
  // A step's logits travel in one message.
  const int64_t most_rows = kLogitBytes / (h.vocabulary * static_cast<int64_t>(sizeof(float)));
  runner.max_decode_rows = std::clamp<int64_t>(runner.max_decode_rows, 1, std::max<int64_t>(1, most_rows));
  // A predictor in a process of its own needs nothing here; without it every neuron is computed.
  runner.predictor = options.predictor_address.empty()
                         ? options.predictor.value_or(DefaultPredictorKind(model))
                         : PredictorKind::kAll;
  const bool adapts = options.adapt && options.placement_path.empty() && h.sparse();
  if (adapts && runner.budget_bytes.has_value()) {
    runner.hot_staging_bytes = std::min(kHotStagingBytes, *runner.budget_bytes / kHotStagingShare);
  }
  return runner;
}

constexpr char kNeedLess[] =
    "Give it a smaller --vram-budget, --kv-tokens or --ctx, or a machine with more memory";

// `own`: what a budget pays for beside buffers; part of it is taken already.
absl::Status CheckMemory(const StagePlan& plan, int64_t own, const Device& device, int64_t max_rows,
                         const model::Model& model) {
  const int64_t scratch = device.WorkspaceBytes(MakeFfnParameters(model.hyperparameters()), max_rows);
  const int64_t needed = plan.total() - own + scratch;
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t available, device.AvailableMemory());
  if (needed <= available) return absl::OkStatus();
  constexpr double kGiB = 1024.0 * 1024 * 1024;
  const bool whole = plan.layers.count() == model.hyperparameters().layers;
  return absl::ResourceExhaustedError(absl::StrFormat(
      "'%s' needs %.2f GiB on this worker%s and %.2f GiB are available. %s", model.DisplayName(),
      needed / kGiB, whole ? "" : absl::StrCat("'s device ", device.name()), available / kGiB, kNeedLess));
}

// What came up while loading, with advice where the memory that CheckMemory saw is not to be had.
absl::Status DescribeLoadFailure(const absl::Status& status, const model::Model& model) {
  if (!absl::IsResourceExhausted(status)) return status;
  return absl::ResourceExhaustedError(
      absl::StrCat("loading '", model.DisplayName(), "': ", status.message(), ". ", kNeedLess));
}

// "none" for a null channel.
const char* NameTransport(const exchange::Channel* channel) {
  return channel == nullptr ? "none" : exchange::TransportName(channel->transport());
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Load(EngineOptions options, EngineDevices devices) {
  std::unique_ptr<Engine> engine(new Engine());
  ISOTHERM_RETURN_IF_ERROR(engine->LoadModel(std::move(options), std::move(devices)));
  return engine;
}

absl::StatusOr<std::string> Engine::DescribePlan(const EngineOptions& options, EngineDevices devices) {
  Engine engine;
  ISOTHERM_RETURN_IF_ERROR(engine.OpenAndPlan(options, std::move(devices)));
  return engine.plan_.ToString(*engine.model_);
}

// The adapter uses everything, and the devices let go of the channel's memory before the channel goes.
Engine::~Engine() {
  adapter_.reset();
  for (const std::unique_ptr<Device>& device : devices_) device->SetChannel(nullptr, 0);
}

absl::Status Engine::OpenAndPlan(const EngineOptions& options, EngineDevices devices) {
  if (const char* reason = kernels::UnsupportedCpuReason()) return absl::FailedPreconditionError(reason);
  ISOTHERM_ASSIGN_OR_RETURN(model_, model::Model::Open(options.model_path));
  ISOTHERM_ASSIGN_OR_RETURN(runner_options_, Complete(options, *model_));
  step_ahead_ = options.step_ahead;
  ISOTHERM_ASSIGN_OR_RETURN(profile_, ChooseProfile(options.profile, *model_));
  LogProfile(profile_, *model_);
  return Plan(options, std::move(devices));
}

absl::Status Engine::LoadModel(EngineOptions options, EngineDevices devices) {
  ISOTHERM_RETURN_IF_ERROR(OpenAndPlan(options, std::move(devices)));
  spdlog::info("{}", plan_.ToString(*model_));
  const model::Hyperparameters& h = model_->hyperparameters();
  base::MutexLock lock(&mutex_);
  if (const absl::Status loaded = LoadWeights(options); !loaded.ok()) {
    return DescribeLoadFailure(loaded, *model_);
  }
  if (plan_.neurons.placement.HotCount() < h.layers * h.ffn) {
    options.cold.worker.model_digest = model_->digest();
    options.cold.worker.geometry = {.layers = h.layers,
                                    .hidden = h.hidden,
                                    .ffn = h.ffn,
                                    .max_rows = runner_options_.max_rows(),
                                    .gate_values = pipeline_->yields_gate(),
                                    .bf16 = options.cold.worker.bf16_activations};
    cold_ = std::make_unique<ColdWorkers>(std::move(options.cold), plan_.neurons.placement);
  }
  if (h.sparse() && !pipeline_->TakeFirings().empty()) {
    firing_log_ = std::make_unique<FiringLog>(h.layers, h.ffn);
  }
  if (runner_options_.hot_staging_bytes > 0) {
    ISOTHERM_RETURN_IF_ERROR(StartAdapting(options.adapt_interval));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const double step_seconds,
                            PredictStepSeconds(*model_, profile_.profile, plan_.neurons.placement,
                                               pipeline_->MeasureReadBandwidth()));
  RecordPlan(plan_, step_seconds, h);
  UpdateState();
  return absl::OkStatus();
}

absl::Status Engine::Plan(const EngineOptions& options, EngineDevices devices) {
  const model::Hyperparameters& h = model_->hyperparameters();
  PlacementSource source{profile_.profile, std::nullopt};
  if (!options.placement_path.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(source.placement,
                              neuron::ReadGpuIndex(options.placement_path, h.layers, h.ffn));
  }
  const int64_t max_rows = runner_options_.max_rows();
  const auto traits = [&](const Device& device) {
    return DeviceMemoryTraits{device.OwnBytes(MakeFfnParameters(h), max_rows), device.embeds_from_host(),
                              device.allocation_unit()};
  };
  PlanDevices on{.devices = {}, .offload_to = std::nullopt};
  for (const std::unique_ptr<Device>& device : devices.devices) on.devices.push_back(traits(*device));
  if (devices.offload_to != nullptr) on.offload_to = traits(*devices.offload_to);
  ISOTHERM_ASSIGN_OR_RETURN(plan_, PlanMemory(*model_, runner_options_, source, on));
  if (plan_.stages.front().offloaded) devices_.push_back(std::move(devices.offload_to));
  std::move(devices.devices.begin(), devices.devices.end(), std::back_inserter(devices_));
  for (size_t i = 0; i < devices_.size(); ++i) {
    const Device& device = *devices_[i];
    ISOTHERM_RETURN_IF_ERROR(
        CheckMemory(plan_.stages[i], traits(device).own_bytes, device, max_rows, *model_));
  }
  return absl::OkStatus();
}

absl::Status Engine::LoadWeights(const EngineOptions& options) {
  const model::Hyperparameters& h = model_->hyperparameters();
  std::vector<Stage> stages;
  for (size_t i = 0; i < devices_.size(); ++i) {
    stages.push_back({devices_[i].get(), plan_.stages[i].layers});
  }
  observe::Progress progress("loading " + model_->DisplayName(), h.layers, "layers");
  ISOTHERM_ASSIGN_OR_RETURN(
      pipeline_, Pipeline::Load(
                     *model_, runner_options_, plan_.neurons.placement, stages,
                     [&](const Stage& stage) { return MakeThePredictor(options, stage); },
                     [&]() -> absl::Status {
                       progress.Advance(1);
                       return options.cancelled() ? absl::CancelledError("stopped") : absl::OkStatus();
                     }));
  progress.Finish();
  runner_ = std::make_unique<Runner>(h, runner_options_, pipeline_.get());
  return absl::OkStatus();
}

absl::Status Engine::StartAdapting(int64_t interval) {
  if (cold_ == nullptr || firing_log_ == nullptr || plan_.neurons.placement.HotCount() == 0) {
    return absl::OkStatus();
  }
  std::vector<DeviceHotLayers> parts;
  std::vector<int64_t> bundle_bytes;
  for (size_t i = 0; i < devices_.size(); ++i) {
    parts.push_back({devices_[i].get(), pipeline_->HotLayers(i)});
    for (const HotLayer& layer : parts.back().layers) bundle_bytes.push_back(layer.layout.bundle_bytes);
  }
  ISOTHERM_ASSIGN_OR_RETURN(
      std::unique_ptr<HotSet> hot_set,
      HotSet::Create(plan_.neurons.placement, parts, runner_options_.hot_staging_bytes));
  AdapterPorts ports;
  ports.rows = [this] {
    base::MutexLock lock(&mutex_);
    return runner_->rows_total();
  };
  ports.firings = [this] { return CollectFirings(); };
  // Reading neurons touches nothing that steps change.
  ports.read = [cold = cold_.get(), bundle_bytes](int64_t layer, absl::Span<const int32_t> neurons,
                                                  uint8_t* out) {
    return cold->ReadNeurons(layer, neurons, bundle_bytes[layer], out);
  };
  ports.follow = [this](const neuron::Placement& next, const std::function<absl::Status()>& commit) {
    return Follow(next, commit);
  };
  adapter_ =
      std::make_unique<Adapter>(plan_.neurons.placement, std::move(hot_set), interval, std::move(ports));
  adapter_->Start();
  return absl::OkStatus();
}

absl::Status Engine::Follow(const neuron::Placement& next, const std::function<absl::Status()>& commit) {
  base::MutexLock lock(&mutex_);
  ISOTHERM_RETURN_IF_ERROR(DeviceHealthLocked());
  ISOTHERM_RETURN_IF_ERROR(cold_->Follow(next));
  return commit();
}

absl::StatusOr<std::unique_ptr<Predictor>> Engine::MakeThePredictor(const EngineOptions& options,
                                                                    const Stage& stage) {
  if (options.predictor_address.empty()) {
    const PredictorOptions in_process{runner_options_.predictor, runner_options_.predictor_threshold_shift,
                                      runner_options_.max_rows()};
    return MakePredictor(*model_, in_process, stage.layers, *stage.device);
  }
  if (!model_->hyperparameters().sparse()) {
    return absl::FailedPreconditionError(
        absl::StrCat("--predictor=", options.predictor_address, ": '", model_->DisplayName(),
                     "' has no neurons that can be skipped. Use --predictor=all"));
  }
  RemotePredictorOptions remote;
  remote.model_digest = model_->digest();
  remote.hidden = model_->hyperparameters().hidden;
  remote.ffn = model_->hyperparameters().ffn;
  auto made = MakeRemotePredictor(worker::v1::PredictorService::NewStub(rpc::MakeChannel(
                                      options.predictor_address, options.cold.worker.credentials)),
                                  remote);
  if (!made.ok()) {
    return absl::Status(made.status().code(), absl::StrCat("predictor at ", options.predictor_address, ": ",
                                                           made.status().message()));
  }
  return made;
}

absl::StatusOr<worker::v1::StepSuccess> Engine::Step(const worker::v1::StepRequest& request) {
  base::MutexLock lock(&mutex_);
  sequences_.Begin(request);
  if (request.slices().empty() && !request.ended().empty()) {
    DropGuess();
    TellCpuWorkers();
    return worker::v1::StepSuccess();
  }
  absl::StatusOr<worker::v1::StepSuccess> success = TakeStep(request);
  sequences_.Count(request, success);
  if (!success.ok()) return success;
  Record(request, *success);
  if (step_ahead_) guess_ = GuessNextStep(request, *success, runner_options_.kv_block_size);
  return success;
}

absl::StatusOr<worker::v1::StepSuccess> Engine::TakeStep(const worker::v1::StepRequest& request) {
  const std::optional<worker::v1::StepRequest> guess = std::exchange(guess_, std::nullopt);
  std::optional<worker::v1::StepSuccess> ahead = std::exchange(ahead_, std::nullopt);
  if (ahead.has_value()) {
    const bool guessed = IsGuessed(*guess, request);
    RecordStepAhead(guessed);
    if (guessed) return *std::move(ahead);
  }
  // The step is the unit of retry: those that are left do it again with the lost worker's part.
  absl::StatusOr<worker::v1::StepSuccess> success = TryStep(request);
  for (int64_t lost = 1; !success.ok() && cold_ != nullptr && cold_->channel() == nullptr; ++lost) {
    if (lost == cold_->count() || !cold_->others_left()) break;
    success = TryStep(request);
  }
  return success;
}

void Engine::DropGuess() {
  if (ahead_.has_value()) RecordStepAhead(/*asked_for=*/false);
  guess_.reset();
  ahead_.reset();
}

void Engine::StepAhead() {
  base::MutexLock lock(&mutex_);
  if (!guess_.has_value()) return;
  absl::StatusOr<worker::v1::StepSuccess> success = TryStep(*guess_);
  if (success.ok()) ahead_ = *std::move(success);
}

// Right after the step's passes, whose figures the runner has.
void Engine::Record(const worker::v1::StepRequest& request, const worker::v1::StepSuccess& success) {
  RecordStep(request, success.statistics(), *runner_, model_->hyperparameters());
  if (cold_ != nullptr) cold_->Record(runner_->last_exchange_latencies());
}

void Engine::EndSequences() {
  base::MutexLock lock(&mutex_);
  sequences_.EndAll();
  DropGuess();
  TellCpuWorkers();
}

void Engine::TellCpuWorkers() {
  if (cold_ == nullptr || cold_->channel() == nullptr) return;
  sequences_.Tell(*cold_->channel(), cold_->openings());
}

absl::StatusOr<worker::v1::StepSuccess> Engine::TryStep(const worker::v1::StepRequest& request) {
  // Whatever the CPU workers lack, the step is not at fault: it waits for a worker that has it.
  if (const absl::Status ready = EnsureReadyLocked(); !ready.ok()) {
    return absl::UnavailableError(ready.message());
  }
  TellCpuWorkers();
  exchange::Channel* channel = cold_ == nullptr ? nullptr : cold_->channel();
  const int64_t bytes_before = channel == nullptr ? 0 : channel->bytes_exchanged();
  pipeline_->SetChannel(channel, cold_ == nullptr ? 0 : cold_->placement().epoch);
  absl::StatusOr<worker::v1::StepSuccess> success = runner_->Run(request);
  UpdateState();
  // What ends a channel can have any code, and says nothing of the device.
  const bool lost_channel = !success.ok() && channel != nullptr && channel->failed();
  if (absl::IsResourceExhausted(success.status()) && !lost_channel) out_of_memory_ = success.status();
  if (!success.ok()) {
    // The step is not at fault: it can be computed after the next start.
    const absl::Status device = DeviceHealthLocked();
    if (!device.ok()) return absl::UnavailableError(device.message());
  }
  if (lost_channel) {
    // Whatever the channel died of, the step is not at fault.
    return absl::UnavailableError(success.status().message());
  }
  if (!success.ok()) return success;
  worker::v1::StepStatistics& statistics = *success->mutable_statistics();
  statistics.set_transport(NameTransport(channel));
  statistics.set_exchange_bytes(channel == nullptr ? 0 : channel->bytes_exchanged() - bytes_before);
  return success;
}

absl::Status Engine::EnsureReady() {
  if (cold_ != nullptr) cold_->Seek();
  base::MutexLock lock(&mutex_);
  return EnsureReadyLocked();
}

absl::Status Engine::DeviceHealth() const {
  base::MutexLock lock(&mutex_);
  return DeviceHealthLocked();
}

absl::Status Engine::DeviceHealthLocked() const {
  for (const std::unique_ptr<Device>& device : devices_) {
    const absl::Status lost = device->Health();
    if (lost.ok()) continue;
    // With several, an error of one may show on another that reads its memory.
    return absl::InternalError(absl::StrCat("device ", DeviceNames(), " is lost: ", lost.message(),
                                            ". Start the worker again: open streams then go on"));
  }
  if (out_of_memory_.ok()) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("device ", DeviceNames(), " ran out of memory in a step: ", out_of_memory_.message(),
                   ". Start the worker again, with a smaller --vram-budget unless something else took the "
                   "memory: open streams then go on"));
}

absl::Status Engine::EnsureReadyLocked() {
  ISOTHERM_RETURN_IF_ERROR(DeviceHealthLocked());
  if (cold_ == nullptr || cold_->settled()) return absl::OkStatus();
  if (firing_log_ != nullptr && cold_->channel() != nullptr) {
    // What the workers counted goes with their channels.
    if (const absl::Status status = CollectLocked(); !status.ok()) {
      spdlog::debug("firing counts not collected: {}", std::string(status.message()));
    }
  }
  pipeline_->SetChannel(nullptr, 0);  // before the channels' memory goes
  const int64_t openings = cold_->openings();
  const absl::Status status = cold_->EnsureConnected();
  if (cold_->openings() != openings && firing_log_ != nullptr) {
    pipeline_->TakeFirings();
    firing_log_->OnExchangeOpened(runner_->rows_total());
  }
  RecordTransport(NameTransport(cold_->channel()));
  UpdateState();
  return status;
}

absl::StatusOr<Firings> Engine::CollectFirings() {
  base::MutexLock lock(&mutex_);
  if (!model_->hyperparameters().sparse()) {
    return absl::FailedPreconditionError(
        absl::StrCat("'", model_->DisplayName(), "' is dense, all of its neurons fire for every token"));
  }
  if (firing_log_ == nullptr) {
    return absl::UnimplementedError(absl::StrCat("device ", DeviceNames(), " does not count firings"));
  }
  ISOTHERM_RETURN_IF_ERROR(CollectLocked());
  return firing_log_->totals();
}

void Engine::CollectNowAndThen() {
  base::MutexLock lock(&mutex_);
  if (firing_log_ == nullptr || absl::Now() - last_collected_ < kCollectInterval) return;
  if (runner_->rows_total() == firing_log_->settled_rows()) return;
  // While the CPU worker is lost there is nothing to collect, and a step will say why.
  if (const absl::Status status = CollectLocked(); !status.ok()) {
    spdlog::debug("firing counts not collected: {}", std::string(status.message()));
  }
}

absl::Status Engine::CollectLocked() {
  last_collected_ = absl::Now();
  firing_log_->AddHot(pipeline_->TakeFirings());
  FiringCounts cold;
  if (cold_ != nullptr) {
    ISOTHERM_ASSIGN_OR_RETURN(cold, cold_->Firings());
  }
  firing_log_->Settle(cold, runner_->rows_total());
  return absl::OkStatus();
}

void Engine::SaveProfile() {
  base::MutexLock lock(&mutex_);
  if (firing_log_ == nullptr || profile_.save_path.empty()) return;
  if (const absl::Status status = CollectLocked(); !status.ok()) {
    spdlog::info("the last seconds' firing counts are lost: {}", std::string(status.message()));
  }
  const Firings& firings = firing_log_->totals();
  if (firings.tokens == 0) return;
  const model::Profile profile = AddOnline(profile_.profile, firings);
  if (const absl::Status status = model::WriteProfile(profile, *model_, profile_.save_path); !status.ok()) {
    spdlog::warn("the firing counts of {} tokens are not saved: {}. --nosave-profile keeps from trying",
                 firings.tokens, std::string(status.message()));
    return;
  }
  spdlog::info("saved the firing counts of {} tokens in {}; the next start places neurons by them",
               profile.tokens, profile_.save_path);
}

void Engine::UpdateState() {
  base::MutexLock lock(&state_mutex_);
  state_.predictor = pipeline_->predictor_name();
  state_.exact = pipeline_->exact();
  state_.transport = NameTransport(cold_ == nullptr ? nullptr : cold_->channel());
}

std::string Engine::DeviceNames() const {
  return absl::StrJoin(devices_, ", ", [](std::string* out, const std::unique_ptr<Device>& device) {
    absl::StrAppend(out, device->name());
  });
}

worker::v1::GetRunnerResponse Engine::Describe() const {
  const model::Hyperparameters& h = model_->hyperparameters();
  worker::v1::GetRunnerResponse response;
  response.set_model_digest(model_->digest());
  response.set_vocabulary_size(static_cast<uint32_t>(h.vocabulary));
  response.set_context_length(static_cast<uint32_t>(runner_options_.context));
  response.set_kv_block_size(static_cast<uint32_t>(runner_options_.kv_block_size));
  response.set_kv_blocks(static_cast<uint32_t>(runner_options_.kv_blocks()));
  response.set_max_prefill_rows(static_cast<uint32_t>(runner_options_.max_prefill_rows));
  response.set_max_decode_rows(static_cast<uint32_t>(runner_options_.max_decode_rows));
  response.set_hot_share(static_cast<double>(plan_.neurons.placement.HotCount()) /
                         static_cast<double>(h.layers * h.ffn));
  response.set_device(DeviceNames());
  base::MutexLock lock(&state_mutex_);
  response.set_predictor(state_.predictor);
  response.set_mode(state_.exact ? "exact" : "predicted");
  response.set_transport(state_.transport);
  return response;
}

}  // namespace isotherm::gpu_worker
