#ifndef ISOTHERM_GATEWAY_ENGINE_CALLER_H_
#define ISOTHERM_GATEWAY_ENGINE_CALLER_H_

#include <functional>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/base/mutex.h"
#include "common/observe/trace.h"

namespace isotherm::gateway {

// Whoever waits for an answer. The engine asks before every step whether anybody still does, so no thread has
// to wake up for each stream. Thread-safe.
class Caller {
 public:
  // `cancelled` is called until Leave, by one thread at a time. The trace of this thread is the request's.
  Caller(std::function<bool()> cancelled, absl::Time deadline)
      : deadline_(deadline), cancelled_(std::move(cancelled)) {
    if (const observe::Trace* trace = observe::CurrentTrace(); trace != nullptr) trace_ = *trace;
  }

  absl::Time deadline() const { return deadline_; }
  const std::optional<observe::Trace>& trace() const { return trace_; }

  bool Gone() {
    base::MutexLock lock(&mutex_);
    return cancelled_ == nullptr || cancelled_();
  }

  // When it returns, `cancelled` is not running and will not be called again.
  void Leave() {
    base::MutexLock lock(&mutex_);
    cancelled_ = nullptr;
  }

 private:
  const absl::Time deadline_;
  std::optional<observe::Trace> trace_;
  base::Mutex mutex_;
  std::function<bool()> cancelled_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_ENGINE_CALLER_H_
