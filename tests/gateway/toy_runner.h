#ifndef ISOTHERM_TESTS_GATEWAY_TOY_RUNNER_H_
#define ISOTHERM_TESTS_GATEWAY_TOY_RUNNER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/mutex.h"
#include "gateway/text/tokenizer.h"
#include "gateway/workers/worker_client.h"
#include "isotherm/worker/v1/model_runner.grpc.pb.h"

namespace isotherm::gateway {

// SentencePiece with <unk>, <s>, </s>, the 256 bytes, and the pieces of plain lower-case words.
std::unique_ptr<text::Tokenizer> MakeToyTokenizer();
inline constexpr uint32_t kToyEos = 2;
inline constexpr uint32_t kFirstToyPiece = 259;

// A model whose logits are a hash of all tokens so far: any token too many, missing or out of place changes
// everything after it. Only pieces are likely; bytes and control tokens are not.
struct ToyModel {
  static uint64_t Extend(uint64_t state, uint32_t token, uint32_t position);
  static std::vector<float> Logits(uint64_t state, int64_t vocabulary);
  // The state after all of `tokens`.
  static uint64_t StateOf(const std::vector<uint32_t>& tokens);
  // What greedy decoding of `tokens` must yield.
  static std::vector<uint32_t> Continue(std::vector<uint32_t> tokens, int count, int64_t vocabulary);
};

// A model runner with a KV cache of its own. It believes nothing: a row is read from the blocks the step
// names, must be there, and must belong to that sequence at that position. Thread-safe.
class ToyRunner {
 public:
  struct Options {
    int64_t vocabulary = 0;
    uint32_t context = 512;
    uint32_t block_size = 4;
    uint32_t blocks = 256;
    uint32_t max_prefill_rows = 16;
    uint32_t max_decode_rows = 8;
    absl::Duration step_time;
    std::string digest = "toy";
  };
  explicit ToyRunner(const Options& options);

  worker::v1::GetRunnerResponse Describe() const;
  // One answer for each request: success or failure.
  worker::v1::StepResponse Step(const worker::v1::StepRequest& request);
  // Nothing where an instance is named and it is gone, for a stream ends with its process, or where
  // `patient`, asked every kPatience, says no.
  std::optional<worker::v1::StepResponse> StepOn(const std::optional<std::string>& instance,
                                                 const worker::v1::StepRequest& request,
                                                 absl::FunctionRef<bool()> patient);

  // Another process: the KV cache is empty, the instance another.
  void Restart();
  void SetReachable(bool reachable);
  void SetReady(bool ready, const std::string& cause);
  // The next steps compute their rows and fail all the same.
  void FailSteps(int count, bool retryable);
  // The next steps throw.
  void ThrowInSteps(int count);
  // Steps with this token among their rows are refused for good.
  void RefuseToken(uint32_t token);
  // The logits of rows that end in this token are NaN.
  void BreakLogitsAfter(uint32_t token);
  // Steps wait at the gate while it is closed.
  void CloseGate();
  void OpenGate();
  int waiting_at_gate() const;
  void SetBlocks(uint32_t blocks);
  // Describes itself with so many blocks, whatever it has.
  void ClaimBlocks(uint32_t blocks);

  bool reachable() const;
  std::string instance_id() const;
  int64_t steps() const;
  // Sequences that it was told are over.
  std::set<uint64_t> ended() const;
  // Traces that came with slices, by sequence, in their order.
  using Traces = std::map<uint64_t, std::vector<worker::v1::TraceContext>>;
  Traces traces() const;
  // Steps said to be followed by the one with the largest logit's token; of those, how many were, and how
  // many of them with the block for it.
  struct Promises {
    int64_t made = 0, kept = 0, with_room = 0;
  };
  Promises promises() const;
  // Most slices and rows seen in one step.
  int64_t largest_batch() const;
  // Everything a step got wrong about blocks, rows or limits; empty if all is well.
  std::vector<std::string> violations() const;

 private:
  struct Row {
    uint64_t sequence_id, state;
    uint32_t position;
  };

  worker::v1::StepResponse StepLocked(const worker::v1::StepRequest& request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ComputeSlice(const worker::v1::SequenceSlice& slice, worker::v1::SliceOutput* output)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CheckStep(const worker::v1::StepRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CheckPromise(const worker::v1::StepRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NotePromise(const worker::v1::SequenceSlice& slice, const worker::v1::SliceOutput& output)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::optional<Row>& RowAt(const worker::v1::SequenceSlice& slice, uint32_t position)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // False: `patient` said no.
  bool PassGate(absl::FunctionRef<bool()> patient) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool GateOpen() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return gate_open_; }

  mutable base::Mutex mutex_;
  Options options_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::optional<Row>> cache_ ABSL_GUARDED_BY(mutex_);  // [blocks * block_size]
  std::optional<Row> scratch_ ABSL_GUARDED_BY(mutex_);
  int instance_ ABSL_GUARDED_BY(mutex_) = 1;
  bool reachable_ ABSL_GUARDED_BY(mutex_) = true;
  std::string not_ready_ ABSL_GUARDED_BY(mutex_);
  int failures_ ABSL_GUARDED_BY(mutex_) = 0;
  bool retryable_ ABSL_GUARDED_BY(mutex_) = true;
  std::optional<uint32_t> claimed_blocks_ ABSL_GUARDED_BY(mutex_);
  int throws_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<uint32_t> refused_ ABSL_GUARDED_BY(mutex_);
  std::optional<uint32_t> broken_ ABSL_GUARDED_BY(mutex_);
  bool gate_open_ ABSL_GUARDED_BY(mutex_) = true;
  int waiting_at_gate_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t steps_ ABSL_GUARDED_BY(mutex_) = 0;
  std::set<uint64_t> ended_ ABSL_GUARDED_BY(mutex_);
  Traces traces_ ABSL_GUARDED_BY(mutex_);
  Promises promises_ ABSL_GUARDED_BY(mutex_);
  std::optional<worker::v1::SequenceSlice> promised_ ABSL_GUARDED_BY(mutex_);
  int64_t largest_batch_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::string> violations_ ABSL_GUARDED_BY(mutex_);
};

// The in-memory twin of the gRPC client. `runner` outlives it.
std::unique_ptr<WorkerClient> NewToyWorkerClient(ToyRunner* runner);

// The same runner behind the real service.
class ToyRunnerService final : public worker::v1::ModelRunnerService::Service {
 public:
  explicit ToyRunnerService(ToyRunner* runner) : runner_(runner) {}
  grpc::Status GetRunner(grpc::ServerContext* context, const worker::v1::GetRunnerRequest* request,
                         worker::v1::GetRunnerResponse* response) override;
  // Two layers of two neurons: 1, 2 and 3, 4 firings in 10 tokens.
  grpc::Status GetFiringCounts(grpc::ServerContext* context,
                               const worker::v1::GetRunnerFiringCountsRequest* request,
                               worker::v1::GetRunnerFiringCountsResponse* response) override;
  grpc::Status Step(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<worker::v1::StepResponse, worker::v1::StepRequest>* stream) override;

 private:
  ToyRunner* const runner_;
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_TESTS_GATEWAY_TOY_RUNNER_H_
