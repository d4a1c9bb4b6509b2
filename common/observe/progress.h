#ifndef ISOTHERM_COMMON_OBSERVE_PROGRESS_H_
#define ISOTHERM_COMMON_OBSERVE_PROGRESS_H_

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"

namespace isotherm::observe {

// Progress of something that takes more than two seconds: a line at most every two seconds with percent, rate
// and remaining time, on a terminal rewritten in place. What is done sooner shows nothing. Thread-safe.
class Progress {
 public:
  // Unit "bytes" is shown as GB and GB/s. The clock outlives the object.
  Progress(std::string what, int64_t total, std::string unit, base::Clock& clock = base::Clock::Real());
  void Advance(int64_t amount);
  // Shows the total time and the rate if anything was shown.
  void Finish();

 private:
  void Show(const std::string& line, bool last) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string what_, unit_;
  const int64_t total_;
  base::Clock& clock_;
  const absl::Time start_;

  base::Mutex mutex_;
  int64_t done_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time last_shown_ ABSL_GUARDED_BY(mutex_);
  bool shown_ ABSL_GUARDED_BY(mutex_) = false;
};

// "loading tales: 42% (1.05 of 2.50 GB), 0.52 GB/s, 3 s left".
std::string ProgressLine(const std::string& what, int64_t done, int64_t total, const std::string& unit,
                         absl::Duration elapsed);

}  // namespace isotherm::observe

#endif  // ISOTHERM_COMMON_OBSERVE_PROGRESS_H_
