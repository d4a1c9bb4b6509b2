#include "gpu_worker/graph/micro_batch_policy.h"

#include <algorithm>

namespace isotherm::gpu_worker {
namespace {

// Less than this part of a pass spent waiting is not worth a trial: two micro-batches could gain no more.
constexpr double kWorthTrying = 0.1;
// The fastest of eight like passes on a busy machine differ by less than this.
constexpr double kWorthTaking = 0.97;

}  // namespace

int64_t MicroBatchPolicy::Choose(int64_t rows) const {
  const int64_t wanted = Measures(rows) ? trials_[rows].micro_batches : std::max<int64_t>(fixed_, 1);
  return std::min({wanted, most_, rows});
}

void MicroBatchPolicy::Record(int64_t rows, absl::Duration pass, absl::Duration wait) {
  if (!Measures(rows)) return;
  Trial& trial = trials_[rows];
  if (trial.hold > 0) {
    if (--trial.hold == 0) trial = Trial();
    return;
  }
  if (pass < trial.fastest) {
    trial.fastest = pass;
    trial.wait = wait;
  }
  if (++trial.passes < kTrialPasses) return;
  if (trial.micro_batches == 1 && trial.wait >= trial.fastest * kWorthTrying) {
    const absl::Duration with_one = trial.fastest;
    trial = Trial{.micro_batches = 2, .fastest_with_one = with_one};
    return;
  }
  if (trial.micro_batches == 2 && trial.fastest > trial.fastest_with_one * kWorthTaking) {
    trial.micro_batches = 1;
  }
  trial.hold = kHoldPasses;
}

}  // namespace isotherm::gpu_worker
