#include "common/neuron/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "absl/time/clock.h"

namespace isotherm::neuron {
namespace {

// Long enough (a millisecond or more) that starting the members does not count, short enough to have many for
// a median.
constexpr int64_t kSliceBytes = 32 << 20;
constexpr int64_t kGrainBytes = 256 << 10;

uint64_t ReadAll(const uint8_t* memory, int64_t bytes) {
  // Far enough ahead to hide a miss at 20 GB/s a core; without it the processor's own prefetcher reaches four
  // fifths of the rate.
  constexpr int64_t kAhead = 2048;
  uint64_t sums[8] = {};
  for (int64_t i = 0; i + 64 <= bytes; i += 64) {
    __builtin_prefetch(memory + i + kAhead);
    uint64_t line[8];
    std::memcpy(line, memory + i, sizeof(line));
    for (int j = 0; j < 8; ++j) sums[j] += line[j];
  }
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace

double MeasureReadBandwidth(base::ThreadPool& pool, const uint8_t* memory, int64_t bytes,
                            absl::Duration budget) {
  if (bytes <= 0) return 0;
  std::vector<double> rates;
  // Keeps the compiler from dropping the reads.
  std::atomic<uint64_t> sink{0};
  const absl::Time deadline = absl::Now() + budget;
  int64_t offset = 0;
  do {
    const int64_t slice = std::min(kSliceBytes, bytes - offset);
    const absl::Time start = absl::Now();
    pool.ParallelFor(slice, kGrainBytes, [&](int64_t begin, int64_t end, int) {
      sink.fetch_add(ReadAll(memory + offset + begin, end - begin), std::memory_order_relaxed);
    });
    rates.push_back(slice / absl::ToDoubleSeconds(absl::Now() - start));
    offset = offset + slice < bytes ? offset + slice : 0;
  } while (absl::Now() < deadline);
  const auto middle = rates.begin() + rates.size() / 2;
  std::nth_element(rates.begin(), middle, rates.end());
  return *middle;
}

}  // namespace isotherm::neuron
