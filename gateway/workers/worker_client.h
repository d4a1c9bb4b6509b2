#ifndef ISOTHERM_GATEWAY_WORKERS_WORKER_CLIENT_H_
#define ISOTHERM_GATEWAY_WORKERS_WORKER_CLIENT_H_

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "isotherm/worker/v1/model_runner.pb.h"

namespace isotherm::gateway {

// While a step takes longer than this, its caller is asked this often whether to go on waiting.
inline constexpr absl::Duration kPatience = absl::Milliseconds(50);

// The one model runner behind this gateway. Thread-compatible.
class WorkerClient {
 public:
  virtual ~WorkerClient() = default;

  // Opens a fresh step stream, giving up the one before, and asks the runner who it is. Every later Step
  // reaches the instance that answered or fails: a stream does not outlive its process. Unavailable or
  // DeadlineExceeded when nobody answers.
  virtual absl::StatusOr<worker::v1::GetRunnerResponse> Connect(absl::Duration timeout) = 0;

  // Asks without touching the stream.
  virtual absl::StatusOr<worker::v1::GetRunnerResponse> GetRunner(absl::Duration timeout) = 0;

  // Sends one step and waits for its answer, until `timeout` is over or `keep_waiting`, asked every kPatience
  // on this thread, says no. Unavailable: nothing happened as far as the gateway is concerned, the same step
  // may be sent again, after Connect. Any other error: the runner refuses this step, and would again.
  virtual absl::StatusOr<worker::v1::StepSuccess> Step(const worker::v1::StepRequest& request,
                                                       absl::Duration timeout,
                                                       absl::FunctionRef<bool()> keep_waiting) = 0;
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_WORKERS_WORKER_CLIENT_H_
