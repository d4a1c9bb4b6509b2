#ifndef ISOTHERM_COMMON_BASE_MUTEX_H_
#define ISOTHERM_COMMON_BASE_MUTEX_H_

#include "absl/base/config.h"
#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#ifdef ABSL_HAVE_THREAD_SANITIZER
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/time/time.h"
#endif

// Abseil's mutex under a name of our own. The thread sanitizer cannot see into the distribution's Abseil,
// which is built without it, and would report everything such a mutex guards; builds under it therefore get
// the same interface over std::mutex, which it knows. Conditions are absl::Condition in both.
namespace isotherm::base {

#ifndef ABSL_HAVE_THREAD_SANITIZER

using Mutex = absl::Mutex;
using MutexLock = absl::MutexLock;

#else

class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  // Wakes the waiters before it unlocks: afterwards another thread may destroy the mutex.
  void Unlock() ABSL_UNLOCK_FUNCTION() {
    released_.notify_all();
    mutex_.unlock();
  }

  void Await(const absl::Condition& condition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) {
    released_.notify_all();  // waiting unlocks too
    released_.wait(mutex_, [&] { return condition.Eval(); });
  }
  // Whether the condition holds.
  bool AwaitWithTimeout(const absl::Condition& condition, absl::Duration timeout)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) {
    released_.notify_all();
    const absl::Duration bounded = std::min(timeout, absl::Hours(24 * 365));  // the clock does not overflow
    return released_.wait_for(mutex_, absl::ToChronoNanoseconds(bounded), [&] { return condition.Eval(); });
  }

 private:
  std::mutex mutex_;
  std::condition_variable_any released_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) { mutex_->Lock(); }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mutex_;
};

#endif

}  // namespace isotherm::base

#endif  // ISOTHERM_COMMON_BASE_MUTEX_H_
