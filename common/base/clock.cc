#include "common/base/clock.h"

#include <chrono>

#include "absl/time/clock.h"

namespace isotherm::base {
namespace {

class RealClock final : public Clock {
 public:
  absl::Time Now() const override {
    return wall_start_ + absl::FromChrono(std::chrono::steady_clock::now() - steady_start_);
  }
  void SleepUntil(absl::Time time) override { absl::SleepFor(time - Now()); }

 private:
  const absl::Time wall_start_ = absl::Now();
  const std::chrono::steady_clock::time_point steady_start_ = std::chrono::steady_clock::now();
};

}  // namespace

Clock& Clock::Real() {
  static Clock& clock = *new RealClock;  // never destroyed: threads may outlive static destruction
  return clock;
}

FakeClock::FakeClock(absl::Time start) : now_(start) {}

absl::Time FakeClock::Now() const {
  MutexLock lock(&mutex_);
  return now_;
}

void FakeClock::SleepUntil(absl::Time time) {
  MutexLock lock(&mutex_);
  ++sleepers_;
  const auto reached = [this, time]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return now_ >= time; };
  mutex_.Await(absl::Condition(&reached));
  --sleepers_;
}

void FakeClock::Advance(absl::Duration duration) {
  MutexLock lock(&mutex_);
  now_ += duration;
}

int FakeClock::sleepers() const {
  MutexLock lock(&mutex_);
  return sleepers_;
}

}  // namespace isotherm::base
