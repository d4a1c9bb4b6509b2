#include "gpu_worker/service/runner_service.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/base/guarded.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"
#include "common/exchange/logits_region.h"
#include "common/observe/log.h"
#include "common/rpc/server.h"
#include "gpu_worker/service/step_metrics.h"

namespace isotherm::gpu_worker {
namespace {

namespace v1 = worker::v1;

// How soon a CPU worker that comes back is noticed without a step asking; four wake-ups a second cost nothing
// measurable.
constexpr absl::Duration kWatchInterval = absl::Milliseconds(250);

// A gateway that reconnects is here before its broken stream is noticed; one that is restarted waits for the
// old one to drain by trying again.
constexpr absl::Duration kStreamPatience = absl::Seconds(1);

// A step that failed for these reasons left nothing behind and may be sent again.
bool IsRetryable(absl::StatusCode code) {
  return code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kDeadlineExceeded ||
         code == absl::StatusCode::kDataLoss || code == absl::StatusCode::kAborted;
}

int64_t LogitRows(const v1::StepRequest& request) {
  return std::count_if(request.slices().begin(), request.slices().end(), [](const v1::SequenceSlice& slice) {
    return slice.output() == v1::STEP_OUTPUT_LAST_LOGITS;
  });
}

// Null where logits have to travel in messages, for the reason that is logged.
std::unique_ptr<exchange::LogitsRegion> AttachOffered(const std::string& directory,
                                                      const v1::LogitsRegion& offer) {
  absl::StatusOr<std::unique_ptr<exchange::LogitsRegion>> region =
      exchange::LogitsRegion::Attach(directory, offer);
  if (region.ok()) return *std::move(region);
  spdlog::info("logits go to the gateway inside messages: {}", std::string(region.status().message()));
  return nullptr;
}

// `region` may be null.
v1::StepResponse Answer(Engine& engine, const v1::StepRequest& request, exchange::LogitsRegion* region) {
  v1::StepResponse response;
  response.set_step_id(request.step_id());
  absl::StatusOr<v1::StepSuccess> success = engine.Step(request);
  if (success.ok()) {
    const int64_t shared = region == nullptr ? 0 : region->Put(request, *success);
    RecordLogits(shared, LogitRows(request) - shared);
    *response.mutable_success() = *std::move(success);
    return response;
  }
  RecordStepFailure(success.status().code());
  v1::StepFailure& failure = *response.mutable_failure();
  failure.set_code(static_cast<int32_t>(success.status().code()));
  failure.set_message(std::string(success.status().message()));
  failure.set_retryable(IsRetryable(success.status().code()));
  return response;
}

}  // namespace

RunnerService::RunnerService(Loader loader, HealthListener health,
                             std::function<void(const absl::Status&)> on_failure, std::string shm_directory)
    : instance_id_(base::RandomId()),
      shm_directory_(std::move(shm_directory)),
      health_(std::move(health)),
      watcher_([this, loader = std::move(loader), on_failure = std::move(on_failure)] {
        LoadAndWatch(loader, on_failure);
      }) {}

RunnerService::~RunnerService() {
  {
    base::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  watcher_.join();
}

void RunnerService::LoadAndWatch(const Loader& loader,
                                 const std::function<void(const absl::Status&)>& on_failure) {
  health_(false, cause());
  absl::StatusOr<std::unique_ptr<Engine>> loaded =
      base::Guarded("loading the model", [&] { return loader([this] { return stopping(); }); });
  if (!loaded.ok()) {
    SetCause(std::string(loaded.status().message()));
    on_failure(loaded.status());
    return;
  }
  std::shared_ptr<Engine> engine = *std::move(loaded);
  {
    base::MutexLock lock(&mutex_);
    engine_ = engine;
  }
  while (true) {
    const absl::Status ready =
        base::Guarded("connecting to the CPU workers", [&] { return engine->EnsureReady(); });
    SetCause(std::string(ready.message()));
    if (const absl::Status lost = engine->DeviceHealth(); !lost.ok()) {
      on_failure(lost);
      return;
    }
    engine->CollectNowAndThen();
    base::MutexLock lock(&mutex_);
    if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kWatchInterval)) return;
  }
}

void RunnerService::SetCause(const std::string& cause) {
  {
    base::MutexLock lock(&mutex_);
    if (cause_ == cause) return;
    cause_ = cause;
  }
  health_(cause.empty(), cause);
}

std::shared_ptr<Engine> RunnerService::engine() const {
  base::MutexLock lock(&mutex_);
  return engine_;
}

bool RunnerService::stopping() const {
  base::MutexLock lock(&mutex_);
  return stopping_;
}

bool RunnerService::draining() const {
  base::MutexLock lock(&mutex_);
  return draining_;
}

std::string RunnerService::cause() const {
  base::MutexLock lock(&mutex_);
  return cause_;
}

grpc::Status RunnerService::GetRunner(grpc::ServerContext* context, const v1::GetRunnerRequest*,
                                      v1::GetRunnerResponse* response) {
  return rpc::Handle("GetRunner", context, [&] {
    const std::shared_ptr<Engine> loaded = engine();
    if (loaded != nullptr) *response = loaded->Describe();
    response->set_instance_id(instance_id_);
    response->set_not_ready_cause(cause());
    response->set_ready(response->not_ready_cause().empty());
    return absl::OkStatus();
  });
}

grpc::Status RunnerService::GetFiringCounts(grpc::ServerContext* context,
                                            const v1::GetRunnerFiringCountsRequest*,
                                            v1::GetRunnerFiringCountsResponse* response) {
  return rpc::Handle("GetFiringCounts", context, [&]() -> absl::Status {
    const std::shared_ptr<Engine> loaded = engine();
    if (loaded == nullptr) return absl::UnavailableError(cause());
    ISOTHERM_ASSIGN_OR_RETURN(const Firings firings, loaded->CollectFirings());
    response->set_tokens(static_cast<uint64_t>(firings.tokens));
    for (const std::vector<uint64_t>& layer : firings.counts) {
      response->add_layers()->mutable_neurons()->Add(layer.begin(), layer.end());
    }
    return absl::OkStatus();
  });
}

void RunnerService::SaveProfile() {
  if (const std::shared_ptr<Engine> loaded = engine(); loaded != nullptr) loaded->SaveProfile();
}

absl::StatusOr<std::shared_ptr<Engine>> RunnerService::OpenStream(grpc::ServerContext* context) {
  base::MutexLock lock(&mutex_);
  if (engine_ == nullptr) return absl::UnavailableError(cause_);
  mutex_.AwaitWithTimeout(absl::Condition(this, &RunnerService::StreamIsFree), kStreamPatience);
  if (draining_) return absl::UnavailableError("draining");
  if (stream_ != nullptr) return absl::UnavailableError("another gateway holds the step stream");
  stream_ = context;
  return engine_;
}

void RunnerService::CloseStream() {
  base::MutexLock lock(&mutex_);
  stream_ = nullptr;
}

bool RunnerService::BeginStep() {
  base::MutexLock lock(&mutex_);
  in_step_ = !draining_;
  return in_step_;
}

void RunnerService::EndStep() {
  base::MutexLock lock(&mutex_);
  in_step_ = false;
}

void RunnerService::Drain() {
  base::MutexLock lock(&mutex_);
  draining_ = true;
  // Between steps the handler is blocked in a read, which only this ends.
  if (stream_ != nullptr && !in_step_) stream_->TryCancel();
}

grpc::Status RunnerService::Step(grpc::ServerContext* context,
                                 grpc::ServerReaderWriter<v1::StepResponse, v1::StepRequest>* stream) {
  return rpc::Handle("Step", context, [&]() -> absl::Status {
    ISOTHERM_ASSIGN_OR_RETURN(const std::shared_ptr<Engine> engine, OpenStream(context));
    const absl::Cleanup close = [&] {
      engine->EndSequences();
      CloseStream();
    };
    std::unique_ptr<exchange::LogitsRegion> region;
    v1::StepRequest request;
    while (stream->Read(&request) && BeginStep()) {
      if (request.has_logits_region()) region = AttachOffered(shm_directory_, request.logits_region());
      const bool written = stream->Write(Answer(*engine, request, region.get()));
      if (written && !draining()) engine->StepAhead();
      EndStep();
      if (!written || draining()) break;
    }
    return draining() ? absl::UnavailableError("draining") : absl::OkStatus();
  });
}

}  // namespace isotherm::gpu_worker
