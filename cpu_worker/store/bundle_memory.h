#ifndef ISOTHERM_CPU_WORKER_STORE_BUNDLE_MEMORY_H_
#define ISOTHERM_CPU_WORKER_STORE_BUNDLE_MEMORY_H_

#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"

namespace isotherm::cpu_worker {

// Zeroed memory of the process alone, on huge pages where the kernel gives them: a sparse walk jumps between
// bundles, and with 4 KiB pages it would miss the TLB for every row. Pages are taken when first written, by
// the thread that writes them, and so on that thread's NUMA node.
class BundleMemory {
 public:
  // ResourceExhausted, naming the size, if the system refuses.
  static absl::StatusOr<BundleMemory> Map(int64_t bytes);
  BundleMemory(BundleMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  BundleMemory& operator=(BundleMemory&&) = delete;
  ~BundleMemory();

  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  BundleMemory(uint8_t* data, int64_t bytes) : data_(data), bytes_(bytes) {}

  uint8_t* data_;
  int64_t bytes_;
};

}  // namespace isotherm::cpu_worker

#endif  // ISOTHERM_CPU_WORKER_STORE_BUNDLE_MEMORY_H_
