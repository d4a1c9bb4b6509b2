#ifndef ISOTHERM_GATEWAY_ENGINE_ENGINE_H_
#define ISOTHERM_GATEWAY_ENGINE_ENGINE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/base/mutex.h"
#include "gateway/engine/gateway_metrics.h"
#include "gateway/engine/sequence.h"
#include "gateway/engine/worker_link.h"
#include "gateway/schedule/kv_block_pool.h"
#include "gateway/schedule/step_plan.h"

namespace isotherm::gateway {

struct EngineOptions {
  WorkerLinkOptions worker;
  // Sequences that may wait for their first step.
  int64_t max_queue = 256;
};

// Called by the engine's thread when serving begins or ends and when the cause changes; it is empty while
// serving.
using ServingListener = std::function<void(bool serving, const std::string& cause)>;

// What the engine last heard of the runner.
struct RunnerState {
  bool serving = false;
  bool loading = false;
  std::string cause;    // why not serving
  int64_t context = 0;  // tokens a sequence may hold; 0: no runner was ready yet
  worker::v1::GetRunnerResponse runner;

  bool operator==(const RunnerState& other) const;
};

// Runs sequences in continuous batches on one worker. One thread plans a step, sends it, feeds the outputs to
// their sequences and starts over; nothing changes in a sequence unless its step succeeded, so a failed step
// is simply planned again. A worker that comes back as another process has lost all KV blocks: every sequence
// computes its rows again. An exception on the thread ends the sequences, not the engine. Thread-safe.
class Engine {
 public:
  // `metrics` outlives the engine.
  Engine(EngineOptions options, std::unique_ptr<WorkerClient> client, const GatewayMetrics* metrics);
  ~Engine() { Stop(); }

  // Until then sequences only queue. Call once.
  void Start(ServingListener on_serving);
  // Ends every sequence with Unavailable. When it returns, nothing runs and the listener is not called again.
  void Stop();

  // Takes the sequence over; it will end with an answer or Fail. An error, with nothing taken:
  // ResourceExhausted (queue full), Unavailable (draining, or the worker is lost for longer than the grace),
  // InvalidArgument (too long).
  absl::Status Submit(std::unique_ptr<Sequence> sequence);

  // From now on Submit refuses; what was taken goes on.
  void Drain();

  RunnerState runner_state() const;

 private:
  using Sequences = std::map<uint64_t, std::unique_ptr<Sequence>>;  // in order of arrival

  // All below run on the engine's thread.
  void Run();
  void RunOnce();
  // After an exception: answers every sequence with it and starts over with a fresh connection.
  void Recover(const std::string& what);
  void TakeSubmissions();
  void EndAbandoned();
  void EndAbandonedIn(Sequences& sequences, absl::Time now);
  // While a step is in flight: answers whoever waits no longer. False: the step is to be given up.
  bool AttendCallers();
  void AdoptRunner();
  void Suspend();
  void RunStep();
  ScheduleSnapshot Snapshot() const;
  void Preempt(uint64_t id);
  void Execute(absl::Span<const PlannedSlice> slices);
  // What no step is there to carry.
  void TellEnded();
  void AcceptOutputs(const worker::v1::StepRequest& request, const worker::v1::StepSuccess& success);
  // Nothing if it was abandoned already.
  void EndRunning(uint64_t id, const absl::Status& status);
  void FailAll(const absl::Status& status);
  void CountSequences();
  void Publish();
  void Wait();
  bool idle() const { return running_.empty() && waiting_.empty(); }

  bool Stirred() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !incoming_.empty(); }
  bool Stopping() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_; }

  // Set once.
  const EngineOptions options_;
  const GatewayMetrics* const metrics_;
  ServingListener on_serving_;

  // Of the engine's thread.
  WorkerLink link_;
  std::string instance_id_;  // whose blocks pool_ counts
  std::unique_ptr<KvBlockPool>
      pool_;  // null until a runner was ready; outlives the leases of the sequences below
  int64_t context_ = 0;
  Sequences running_;
  Sequences waiting_;
  Sequences abandoned_;          // answered, but a step may still write into their blocks
  std::vector<uint64_t> ended_;  // sequences that the worker takes for alive
  uint64_t next_step_id_ = 1;
  absl::Time waiting_checked_ = absl::InfinitePast();

  mutable base::Mutex mutex_;
  std::vector<std::unique_ptr<Sequence>> incoming_ ABSL_GUARDED_BY(mutex_);
  int64_t unstarted_ ABSL_GUARDED_BY(mutex_) = 0;  // in waiting_
  uint64_t next_sequence_id_ ABSL_GUARDED_BY(mutex_) = 1;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);  // not OK once an outage outlasts the grace
  RunnerState state_ ABSL_GUARDED_BY(mutex_);

  std::thread thread_;
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_ENGINE_ENGINE_H_
