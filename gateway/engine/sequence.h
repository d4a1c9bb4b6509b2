#ifndef ISOTHERM_GATEWAY_ENGINE_SEQUENCE_H_
#define ISOTHERM_GATEWAY_ENGINE_SEQUENCE_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gateway/engine/caller.h"
#include "gateway/engine/execution_totals.h"
#include "gateway/engine/gateway_metrics.h"
#include "gateway/schedule/kv_block_pool.h"
#include "gateway/schedule/step_plan.h"
#include "isotherm/worker/v1/model_runner.pb.h"

namespace isotherm::gateway {

// One request inside the engine: a token history, the KV blocks of the rows computed so far, and what is done
// with the outputs. The history, never the KV cache, is the truth: rows can be forgotten at any time and
// computed again. Used by the engine's thread alone.
class Sequence {
 public:
  virtual ~Sequence() = default;

  uint64_t id() const { return id_; }
  void set_id(uint64_t id) { id_ = id; }
  Caller& caller() { return *caller_; }
  absl::Time arrival() const { return arrival_; }
  bool started() const { return started_.has_value(); }

  // Bounds the sequence to `context` tokens; again whenever a runner with another bound takes over. An error,
  // with both numbers, if it is too long already.
  virtual absl::Status FitInto(int64_t context) = 0;

  SequenceSnapshot Snapshot() const;
  // Where the KV blocks come from. Any earlier ones must have been forgotten.
  void AttachTo(KvBlockPool* pool) { lease_ = pool->NewLease(); }
  // Gives the KV blocks back. True if there were rows in them, which then count as a rebuild.
  bool ForgetRows();

  // Takes the blocks for these rows and describes them to the runner: its connection number `connection`,
  // which learns the trace with the first slice. Internal if the blocks are not there.
  absl::Status Fill(const PlannedSlice& planned, absl::Time now, int64_t connection,
                    worker::v1::SequenceSlice* slice);

  // After Fill, for a slice that has its step for itself: tells the runner, where it is so, what will follow,
  // and takes the block for it if there is one.
  void OfferNext(worker::v1::SequenceSlice* slice);

  // The step with that slice succeeded. True: the request is answered and the sequence over. An error ends it
  // too.
  absl::StatusOr<bool> Accept(const worker::v1::SequenceSlice& slice, const worker::v1::SliceOutput& output,
                              const worker::v1::StepStatistics& statistics, absl::Time now);

  // The worker is lost; what was promised goes on when it is back.
  virtual void WaitForWorker() {}

  // Answers the request with an error. The sequence is over.
  void Fail(const absl::Status& status);

 protected:
  Sequence(std::shared_ptr<Caller> caller, const GatewayMetrics* metrics)
      : caller_(std::move(caller)), metrics_(metrics), arrival_(absl::Now()) {}

  // Rows that lead to the next output: at least one more than are computed.
  virtual int64_t rows_wanted() const = 0;
  virtual int64_t prompt_tokens() const = 0;
  // Tokens, output and targets of rows [position, position + rows).
  virtual void FillTokens(int64_t position, int64_t rows, worker::v1::SequenceSlice* slice) const = 0;
  // Tokens of which a step with the most probable one follows on the slice's output; 0: something else may
  // follow.
  virtual uint32_t GreedyChoices(const worker::v1::SequenceSlice& slice) const { return 0; }
  // rows_computed() includes the slice.
  virtual absl::StatusOr<bool> OnOutput(const worker::v1::SequenceSlice& slice,
                                        const worker::v1::SliceOutput& output, absl::Time now) = 0;
  virtual void OnFailure(const absl::Status& status) = 0;

  int64_t rows_computed() const { return rows_computed_; }
  uint32_t rebuilds() const { return rebuilds_; }
  absl::Duration queue_time() const { return started_.value_or(arrival_) - arrival_; }
  absl::Time start_time() const { return started_.value_or(arrival_); }
  const ExecutionTotals& execution() const { return execution_; }
  const GatewayMetrics& metrics() const { return *metrics_; }

 private:
  uint64_t id_ = 0;
  const std::shared_ptr<Caller> caller_;
  const GatewayMetrics* const metrics_;
  const absl::Time arrival_;
  std::optional<absl::Time> started_;  // when its first step was built
  int64_t traced_on_ = 0;              // the connection that knows the trace
  KvLease lease_;
  int64_t rows_computed_ = 0;
  uint32_t rebuilds_ = 0;
  ExecutionTotals execution_;
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_ENGINE_SEQUENCE_H_
