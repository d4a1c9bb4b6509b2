#ifndef ISOTHERM_COMMON_BASE_CLOCK_H_
#define ISOTHERM_COMMON_BASE_CLOCK_H_

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/base/mutex.h"

namespace isotherm::base {

// Where time comes from, so that policies with time-outs can be tested without waiting. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Never goes back.
  virtual absl::Time Now() const = 0;
  virtual void SleepUntil(absl::Time time) = 0;
  void SleepFor(absl::Duration duration) { SleepUntil(Now() + duration); }

  // The wall clock as read when the process first asked, advanced by the monotonic clock: setting the
  // machine's time neither shortens nor stretches a time-out. Lives as long as the process.
  static Clock& Real();
};

// Stands still until told to advance; a sleeper wakes when Advance reaches its time.
class FakeClock final : public Clock {
 public:
  explicit FakeClock(absl::Time start = absl::UnixEpoch());
  absl::Time Now() const override;
  void SleepUntil(absl::Time time) override;
  // `duration` is not negative.
  void Advance(absl::Duration duration);
  // Threads inside SleepUntil, so that a test can wait for them before it advances.
  int sleepers() const;

 private:
  mutable Mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_);
  int sleepers_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace isotherm::base

#endif  // ISOTHERM_COMMON_BASE_CLOCK_H_
