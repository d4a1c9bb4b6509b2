#include "gateway/engine/worker_link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/observe/log.h"

namespace isotherm::gateway {
namespace {

// A runner that restarts is back in the batch within a fifth of a second, at a cost of five attempts a
// second.
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(10);
constexpr absl::Duration kMaxBackoff = absl::Milliseconds(200);
// An answer that takes longer than this is as good as none: GetRunner does no work.
constexpr absl::Duration kProbeTimeout = absl::Seconds(1);
// In blocks of 16 rows, 268 million rows: more than any worker has memory for. The list of free ones takes 64
// MiB.
constexpr uint32_t kMostKvBlocks = 1 << 24;

}  // namespace

WorkerLink::WorkerLink(WorkerLinkOptions options, std::unique_ptr<WorkerClient> client)
    : options_(std::move(options)),
      client_(std::move(client)),
      cause_(absl::UnavailableError("not connected to the GPU worker yet")),
      lost_since_(absl::Now()),
      backoff_(kFirstBackoff) {}

bool WorkerLink::Ready() {
  if (connected_) return true;
  if (absl::Now() < next_attempt_) return false;
  absl::StatusOr<worker::v1::GetRunnerResponse> runner = client_->Connect(kProbeTimeout);
  loading_ = runner.ok() && !runner->ready() && runner->model_digest().empty();
  absl::Status status = runner.status();
  if (runner.ok()) {
    runner_ = *std::move(runner);
    status = CheckRunner();
  }
  if (!status.ok()) {
    Lose(status);
    return false;
  }
  connected_ = true;
  ++connections_;
  return true;
}

absl::Status WorkerLink::CheckRunner() {
  if (!runner_.ready()) {
    return absl::UnavailableError(runner_.not_ready_cause().empty() ? "the GPU worker is not ready"
                                                                    : runner_.not_ready_cause());
  }
  if (runner_.model_digest() != options_.model_digest) {
    return absl::UnavailableError(absl::StrCat("the GPU worker serves another model: its file's digest is ",
                                               runner_.model_digest(), ", the gateway's is ",
                                               options_.model_digest));
  }
  if (runner_.vocabulary_size() != options_.vocabulary_size) {
    return absl::UnavailableError(absl::StrCat("the GPU worker's vocabulary has ", runner_.vocabulary_size(),
                                               " tokens, the gateway's ", options_.vocabulary_size));
  }
  if (runner_.context_length() == 0 || runner_.kv_block_size() == 0 || runner_.kv_blocks() == 0 ||
      runner_.max_prefill_rows() == 0 || runner_.max_decode_rows() == 0) {
    return absl::UnavailableError("the GPU worker has no room for even one sequence");
  }
  if (runner_.kv_blocks() > kMostKvBlocks) {
    return absl::UnavailableError(absl::StrCat("the GPU worker claims ", runner_.kv_blocks(),
                                               " KV blocks; at most ", kMostKvBlocks, " are believed"));
  }
  return absl::OkStatus();
}

void WorkerLink::Lose(const absl::Status& cause) {
  if (cause_ != cause) spdlog::warn("no steps for now: {}", std::string(cause.message()));
  connected_ = false;
  cause_ = cause;
  const absl::Time now = absl::Now();
  if (!lost_since_) lost_since_ = now;
  next_attempt_ = now + backoff_;
  backoff_ = std::min(2 * backoff_, kMaxBackoff);
}

absl::StatusOr<worker::v1::StepSuccess> WorkerLink::Step(const worker::v1::StepRequest& request,
                                                         absl::FunctionRef<bool()> keep_waiting) {
  absl::StatusOr<worker::v1::StepSuccess> success =
      client_->Step(request, options_.step_timeout, keep_waiting);
  if (absl::IsUnavailable(success.status())) {
    Lose(success.status());
  } else {
    Confirm();
  }
  return success;
}

void WorkerLink::Probe() {
  if (!connected_) return;
  const absl::StatusOr<worker::v1::GetRunnerResponse> runner = client_->GetRunner(kProbeTimeout);
  if (!runner.ok()) {
    Lose(runner.status());
  } else if (!runner->ready() || runner->instance_id() != runner_.instance_id()) {
    // The next connection finds out the rest.
    connected_ = false;
    next_attempt_ = absl::InfinitePast();
  }
}

void WorkerLink::Confirm() {
  if (!cause_.ok()) spdlog::info("the GPU worker is ready (instance {})", runner_.instance_id());
  cause_ = absl::OkStatus();
  lost_since_.reset();
  backoff_ = kFirstBackoff;
}

bool WorkerLink::GraceOver() const {
  return lost_since_.has_value() && absl::Now() - *lost_since_ >= options_.grace;
}

absl::Duration WorkerLink::RetryIn() const {
  return std::max(next_attempt_ - absl::Now(), absl::ZeroDuration());
}

}  // namespace isotherm::gateway
