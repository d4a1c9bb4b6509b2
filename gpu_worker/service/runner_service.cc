#include "gpu_worker/service/runner_service.h"

#include <utility>

#include "common/base/random_id.h"
#include "common/rpc/server.h"
#include "gpu_worker/service/step_metrics.h"

namespace isotherm::gpu_worker {
namespace {

namespace v1 = worker::v1;

// How soon a CPU worker that comes back is noticed without a step asking; four wake-ups a second cost nothing
// measurable.
constexpr absl::Duration kWatchInterval = absl::Milliseconds(250);

// A step that failed for these reasons left nothing behind and may be sent again.
bool IsRetryable(absl::StatusCode code) {
  return code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kDeadlineExceeded ||
         code == absl::StatusCode::kDataLoss || code == absl::StatusCode::kAborted;
}

v1::StepResponse Answer(Engine& engine, const v1::StepRequest& request) {
  v1::StepResponse response;
  response.set_step_id(request.step_id());
  absl::StatusOr<v1::StepSuccess> success = engine.Step(request);
  if (success.ok()) {
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
                             std::function<void(const absl::Status&)> on_load_failure)
    : instance_id_(base::RandomId()),
      health_(std::move(health)),
      watcher_([this, loader = std::move(loader), on_load_failure = std::move(on_load_failure)] {
        LoadAndWatch(loader, on_load_failure);
      }) {}

RunnerService::~RunnerService() {
  {
    base::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  watcher_.join();
}

void RunnerService::LoadAndWatch(const Loader& loader,
                                 const std::function<void(const absl::Status&)>& on_load_failure) {
  health_(false, cause());
  absl::StatusOr<std::unique_ptr<Engine>> loaded = loader([this] { return stopping(); });
  if (!loaded.ok()) {
    SetCause(std::string(loaded.status().message()));
    on_load_failure(loaded.status());
    return;
  }
  std::shared_ptr<Engine> engine = *std::move(loaded);
  {
    base::MutexLock lock(&mutex_);
    engine_ = engine;
  }
  while (true) {
    SetCause(std::string(engine->EnsureReady().message()));
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

grpc::Status RunnerService::Step(grpc::ServerContext* context,
                                 grpc::ServerReaderWriter<v1::StepResponse, v1::StepRequest>* stream) {
  return rpc::Handle("Step", context, [&] {
    const std::shared_ptr<Engine> loaded = engine();
    if (loaded == nullptr) return absl::UnavailableError(cause());
    v1::StepRequest request;
    while (stream->Read(&request)) {
      if (!stream->Write(Answer(*loaded, request))) break;
    }
    return absl::OkStatus();
  });
}

}  // namespace isotherm::gpu_worker
