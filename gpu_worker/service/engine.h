#ifndef ISOTHERM_GPU_WORKER_SERVICE_ENGINE_H_
#define ISOTHERM_GPU_WORKER_SERVICE_ENGINE_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/mutex.h"
#include "common/model/model.h"
#include "gpu_worker/cold/cold_workers.h"
#include "gpu_worker/device/device.h"
#include "gpu_worker/graph/memory_plan.h"
#include "gpu_worker/graph/pipeline.h"
#include "gpu_worker/graph/runner.h"
#include "gpu_worker/service/adapter.h"
#include "gpu_worker/service/firing_log.h"
#include "gpu_worker/service/profile_choice.h"
#include "gpu_worker/service/sequence_log.h"
#include "isotherm/worker/v1/model_runner.pb.h"

namespace isotherm::gpu_worker {

struct EngineOptions {
  std::string model_path;
  // context 0: the model's trained context, at most 4,096. kv_tokens 0: sixteen sequences' worth.
  RunnerOptions runner;
  // Absent: DefaultPredictorKind.
  std::optional<PredictorKind> predictor;
  // Address of a PredictorService; empty for the in-process predictor.
  std::string predictor_address;
  ProfileOptions profile;
  // Index file of PowerInfer that says which neurons are hot; empty: planned here.
  std::string placement_path;
  // Moves the hot set after what fires, looking every so many token rows; without effect where
  // `placement_path` says what is hot, and where nothing can be moved.
  bool adapt = false;
  int64_t adapt_interval = neuron::kMoveInterval;
  bool step_ahead = false;  // whether StepAhead does anything
  // CPU workers; the digest and geometry are filled in from the model.
  ColdWorkersOptions cold;
  // Asked between layers while loading; true gives up with Cancelled.
  std::function<bool()> cancelled = [] { return false; };
};

// Where a model is to be.
struct EngineDevices {
  std::vector<std::unique_ptr<Device>> devices;
  // The CPU, for the layers that do not fit the budget; null: they have to.
  std::unique_ptr<Device> offload_to;
};

// The model on its devices with the way to the CPU workers: everything ModelRunnerService speaks of.
// Thread-safe.
class Engine {
 public:
  ~Engine();
  // Checks memory, plans, loads and reports progress in the log.
  static absl::StatusOr<std::unique_ptr<Engine>> Load(EngineOptions options, EngineDevices devices);

  // What Load would put where, checked in the same way, for people; loads nothing.
  static absl::StatusOr<std::string> DescribePlan(const EngineOptions& options, EngineDevices devices);

  // The loss of a CPU worker whose part others can take is not an error. Errors of lost CPU workers are
  // Unavailable; the same step may be sent again.
  absl::StatusOr<worker::v1::StepSuccess> Step(const worker::v1::StepRequest& request);
  // Computes what the last step's request will probably be followed by (next_step.h), if anything. Its
  // failure shows when the step is asked for.
  void StepAhead();
  // Whoever sent the steps is gone.
  void EndSequences();

  // Opens the exchanges if they are needed and not open; cheap when they are. Call now and then, so that a
  // worker that comes back is found before the next step asks for it. One thread.
  absl::Status EnsureReady();
  // An error, once a device is lost or was out of memory in a step, that says so: the process has to end.
  absl::Status DeviceHealth() const;

  // How often each neuron fired since the start, after the step in progress. FailedPrecondition for a dense
  // model, Unimplemented for a device that does not count, Unavailable while the CPU worker is lost.
  absl::StatusOr<Firings> CollectFirings();
  // Collects what was not collected for a while, so that a lost CPU worker takes little with it. Call now and
  // then.
  void CollectNowAndThen();
  // Saves the firings where ChooseProfile said, if anywhere; a file that cannot be written is a warning.
  void SaveProfile();

  // All but instance id and readiness. Waits for no step and no CPU worker.
  worker::v1::GetRunnerResponse Describe() const;

 private:
  Engine() = default;
  absl::Status LoadModel(EngineOptions options, EngineDevices devices);
  // All that comes before loading.
  absl::Status OpenAndPlan(const EngineOptions& options, EngineDevices devices);
  // Fills plan_ in, and devices_ in the order of its stages.
  absl::Status Plan(const EngineOptions& options, EngineDevices devices);
  absl::Status LoadWeights(const EngineOptions& options) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::unique_ptr<Predictor>> MakeThePredictor(const EngineOptions& options,
                                                              const Stage& stage);
  // The devices' names.
  std::string DeviceNames() const;
  // Ahead or now.
  absl::StatusOr<worker::v1::StepSuccess> TakeStep(const worker::v1::StepRequest& request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<worker::v1::StepSuccess> TryStep(const worker::v1::StepRequest& request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropGuess() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Record(const worker::v1::StepRequest& request, const worker::v1::StepSuccess& success)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status StartAdapting(int64_t interval) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // AdapterPorts::follow.
  absl::Status Follow(const neuron::Placement& next, const std::function<absl::Status()>& commit);
  void TellCpuWorkers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status EnsureReadyLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status DeviceHealthLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CollectLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UpdateState() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Set once by Load.
  std::vector<std::unique_ptr<Device>> devices_;
  std::unique_ptr<model::Model> model_;
  RunnerOptions runner_options_;
  bool step_ahead_ = false;
  ProfileChoice profile_;
  MemoryPlan plan_;
  // Null where every neuron is hot. Only Seek may be called without mutex_.
  std::unique_ptr<ColdWorkers> cold_;

  // What Describe tells of the objects below, as of the last step or attempt to connect.
  struct State {
    std::string predictor;
    bool exact = false;
    std::string transport = "none";
  };
  mutable base::Mutex state_mutex_;
  State state_ ABSL_GUARDED_BY(state_mutex_);

  // Held while a step runs or the CPU worker is sought, which may take seconds.
  mutable base::Mutex mutex_;
  std::unique_ptr<Pipeline> pipeline_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<Runner> runner_ ABSL_GUARDED_BY(mutex_);
  SequenceLog sequences_ ABSL_GUARDED_BY(mutex_);
  // What may be asked for next, and what was computed before that. Neither outlives the next step.
  std::optional<worker::v1::StepRequest> guess_ ABSL_GUARDED_BY(mutex_);
  std::optional<worker::v1::StepSuccess> ahead_ ABSL_GUARDED_BY(mutex_);
  // Null for a dense model and for a device that does not count.
  std::unique_ptr<FiringLog> firing_log_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_collected_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  // What a step failed of where no memory was left for it.
  absl::Status out_of_memory_ ABSL_GUARDED_BY(mutex_);
  // Null where the hot set stays as it is.
  std::unique_ptr<Adapter> adapter_;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_SERVICE_ENGINE_H_
