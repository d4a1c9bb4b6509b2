#ifndef ISOTHERM_GPU_WORKER_SERVICE_RUNNER_SERVICE_H_
#define ISOTHERM_GPU_WORKER_SERVICE_RUNNER_SERVICE_H_

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "common/base/mutex.h"
#include "gpu_worker/service/engine.h"
#include "isotherm/worker/v1/model_runner.grpc.pb.h"

namespace isotherm::gpu_worker {

// ModelRunnerService over an engine that loads in the background, with a watcher that keeps the exchange open
// and tells the process's health. Thread-safe.
class RunnerService final : public worker::v1::ModelRunnerService::Service {
 public:
  // Asks `cancelled` now and then and gives up when told.
  using Loader =
      std::function<absl::StatusOr<std::unique_ptr<Engine>>(const std::function<bool()>& cancelled)>;
  // (serving, cause): called when either changes.
  using HealthListener = std::function<void(bool, const std::string&)>;

  // `on_failure` is told why when the loader fails or the device is lost; the process then has nothing left
  // to do.
  // Logits go through `shm_directory` to a gateway that offers memory there.
  RunnerService(Loader loader, HealthListener health, std::function<void(const absl::Status&)> on_failure,
                std::string shm_directory);
  ~RunnerService() override;

  // Ends the open Step stream once the step in flight is answered and refuses further ones.
  void Drain();

  // Saves the firing counts of the engine, if it was loaded; after the last step.
  void SaveProfile();

  grpc::Status GetFiringCounts(grpc::ServerContext* context,
                               const worker::v1::GetRunnerFiringCountsRequest* request,
                               worker::v1::GetRunnerFiringCountsResponse* response) override;
  grpc::Status GetRunner(grpc::ServerContext* context, const worker::v1::GetRunnerRequest* request,
                         worker::v1::GetRunnerResponse* response) override;
  grpc::Status Step(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<worker::v1::StepResponse, worker::v1::StepRequest>* stream) override;

 private:
  void LoadAndWatch(const Loader& loader, const std::function<void(const absl::Status&)>& on_failure);
  void SetCause(const std::string& cause);
  std::shared_ptr<Engine> engine() const;
  std::string cause() const;
  bool stopping() const;
  bool draining() const;
  // Waits a little for an earlier stream to end. Unavailable while it lasts, before the model is loaded and
  // when draining.
  absl::StatusOr<std::shared_ptr<Engine>> OpenStream(grpc::ServerContext* context);
  void CloseStream();
  // False when the stream shall end instead of taking another step.
  bool BeginStep();
  void EndStep();
  bool StreamIsFree() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stream_ == nullptr || draining_; }

  const std::string instance_id_;
  const std::string shm_directory_;
  const HealthListener health_;
  mutable base::Mutex mutex_;
  std::shared_ptr<Engine> engine_ ABSL_GUARDED_BY(mutex_);
  std::string cause_ ABSL_GUARDED_BY(mutex_) = "loading model";  // empty: ready
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  // KV blocks are one gateway's to give out, so there is one stream at a time.
  grpc::ServerContext* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool in_step_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread watcher_;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_SERVICE_RUNNER_SERVICE_H_
