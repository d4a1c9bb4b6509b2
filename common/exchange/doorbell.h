#ifndef ISOTHERM_COMMON_EXCHANGE_DOORBELL_H_
#define ISOTHERM_COMMON_EXCHANGE_DOORBELL_H_

#include <atomic>
#include <cstdint>

#include "common/base/cpu_relax.h"

// Words in shared memory that one side stores and the other waits for.
//
// A waiter that has spun long enough parks on a futex word of its own: it stores 1 there, looks once more at
// whatever it waits for, and sleeps while the word is still 1. A host that has published something clears the
// word and wakes the sleeper if it was set. Because both sides store before they load, in the single order of
// sequentially consistent operations, one of them sees the other: no wake-up is lost. A GPU publishes without
// looking at the futex word, therefore every sleep is bounded.
namespace isotherm::exchange {

// Publishes with release; sequentially consistent for the argument above.
inline void StoreWord(uint32_t* word, uint32_t value) {
  std::atomic_ref<uint32_t>(*word).store(value, std::memory_order_seq_cst);
}
inline uint32_t LoadWord(const uint32_t* word) {
  return std::atomic_ref<uint32_t>(const_cast<uint32_t&>(*word)).load(std::memory_order_seq_cst);
}

int64_t MonotonicNanoseconds();

// Wakes the side that parks on `parked`, if it sleeps. Call after publishing.
void WakeParked(uint32_t* parked);

// Sleeps on `parked`, which the caller has set to 1, until woken or for at most `slice_ns`; may return early.
void SleepParked(uint32_t* parked, int64_t slice_ns);

// Spins for `spin_ns` and then parks once, for at most `slice_ns`, while `ready()` is false. Returns ready().
template <typename Ready>
bool SpinThenPark(uint32_t* parked, int64_t spin_ns, int64_t slice_ns, const Ready& ready) {
  if (ready()) return true;
  if (spin_ns > 0) {
    const int64_t end = MonotonicNanoseconds() + spin_ns;
    do {
      // Reading the clock costs about as much as these pauses.
      for (int i = 0; i < 8; ++i) {
        base::CpuRelax();
        if (ready()) return true;
      }
    } while (MonotonicNanoseconds() < end);
  }
  StoreWord(parked, 1);
  if (!ready()) SleepParked(parked, slice_ns);
  StoreWord(parked, 0);
  return ready();
}

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_DOORBELL_H_
