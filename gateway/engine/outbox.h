#ifndef ISOTHERM_GATEWAY_ENGINE_OUTBOX_H_
#define ISOTHERM_GATEWAY_ENGINE_OUTBOX_H_

#include <deque>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "common/base/mutex.h"
#include "isotherm/v1/inference.pb.h"

namespace isotherm::gateway {

// Events on their way from the engine to the handler of one Generate stream. Thread-safe.
//
// Push never blocks, so a slow reader holds up nobody: chunks it has not taken grow together into one, and
// progress it has not seen is replaced. What is held is bounded by the text of one sequence.
class Outbox {
 public:
  void Push(const v1::GenerateProgress& progress);
  void Push(const v1::GenerateChunk& chunk);
  // The end; nothing may follow but Fail, which then changes nothing.
  void Complete(const v1::GenerateComplete& complete);
  void Fail(const absl::Status& status);

  // Blocks for the next event. Nothing: the stream has ended with status().
  std::optional<v1::GenerateResponse> Next();
  absl::Status status() const;

 private:
  bool Readable() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ended_ || !events_.empty(); }

  mutable base::Mutex mutex_;
  std::deque<v1::GenerateResponse> events_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_ENGINE_OUTBOX_H_
