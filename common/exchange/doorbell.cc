#include "common/exchange/doorbell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

namespace isotherm::exchange {
namespace {

constexpr int64_t kNanosecondsPerSecond = 1'000'000'000;

}  // namespace

int64_t MonotonicNanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * kNanosecondsPerSecond + now.tv_nsec;
}

// Neither call uses FUTEX_PRIVATE_FLAG: the word is shared between processes.
void WakeParked(uint32_t* parked) {
  std::atomic_ref<uint32_t> word(*parked);
  if (word.load(std::memory_order_seq_cst) == 0 || word.exchange(0, std::memory_order_seq_cst) == 0) return;
  syscall(SYS_futex, parked, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void SleepParked(uint32_t* parked, int64_t slice_ns) {
  const timespec slice{.tv_sec = slice_ns / kNanosecondsPerSecond,
                       .tv_nsec = slice_ns % kNanosecondsPerSecond};
  // A wake-up, a changed word, a signal and the end of the slice all mean the same to the caller: look again.
  syscall(SYS_futex, parked, FUTEX_WAIT, 1, &slice, nullptr, 0);
}

}  // namespace isotherm::exchange
