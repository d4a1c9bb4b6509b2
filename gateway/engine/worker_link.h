#ifndef ISOTHERM_GATEWAY_ENGINE_WORKER_LINK_H_
#define ISOTHERM_GATEWAY_ENGINE_WORKER_LINK_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gateway/workers/worker_client.h"

namespace isotherm::gateway {

struct WorkerLinkOptions {
  // The runner must serve this very file.
  std::string model_digest;
  int64_t vocabulary_size = 0;  // rows of the embedding, which may be padded beyond the tokenizer's tokens
  // How long an outage may last before requests end; zero: it ends them at once. A step that is taking its
  // time is no outage yet.
  absl::Duration grace = absl::Seconds(60);
  // A step that takes longer begins an outage.
  absl::Duration step_timeout = absl::Seconds(120);
};

// The worker client with a memory: whether steps may be sent, since when not and why. An outage begins with
// the first failure noticed and ends with Confirm or a step that was answered; a connection alone does not
// end it, for a runner can be reachable and still fail every step. Thread-compatible.
class WorkerLink {
 public:
  WorkerLink(WorkerLinkOptions options, std::unique_ptr<WorkerClient> client);

  // Connects, if that is needed and due. True: steps may be sent to runner().
  bool Ready();
  bool connected() const { return connected_; }
  // How often it has connected. Each is a stream of its own, whose worker has heard of nothing.
  int64_t connections() const { return connections_; }
  // The latest answer of a runner, ready or not.
  const worker::v1::GetRunnerResponse& runner() const { return runner_; }

  // As WorkerClient::Step. Unavailable begins or continues an outage.
  absl::StatusOr<worker::v1::StepSuccess> Step(const worker::v1::StepRequest& request,
                                               absl::FunctionRef<bool()> keep_waiting);
  // Asks the connected runner whether it is still there and ready.
  void Probe();
  // Begins or continues an outage: no steps before the next connection.
  void Lose(const absl::Status& cause);
  void Confirm();

  // OK outside an outage.
  const absl::Status& cause() const { return cause_; }
  // The runner answers but has not loaded its model yet.
  bool loading() const { return loading_; }
  bool GraceOver() const;
  // Until the next attempt to connect is due.
  absl::Duration RetryIn() const;

 private:
  absl::Status CheckRunner();

  const WorkerLinkOptions options_;
  const std::unique_ptr<WorkerClient> client_;
  bool connected_ = false;
  int64_t connections_ = 0;
  bool loading_ = false;
  worker::v1::GetRunnerResponse runner_;
  absl::Status cause_;
  std::optional<absl::Time> lost_since_;
  absl::Duration backoff_;
  absl::Time next_attempt_ = absl::InfinitePast();
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_ENGINE_WORKER_LINK_H_
