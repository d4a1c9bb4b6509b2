#ifndef ISOTHERM_CPU_WORKER_STORE_BUNDLE_MEMORY_H_
#define ISOTHERM_CPU_WORKER_STORE_BUNDLE_MEMORY_H_

#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "common/base/thread_pool.h"
#include "common/base/unique_fd.h"

namespace isotherm::cpu_worker {

// Zeroed memory on huge pages where the kernel gives them: a sparse walk jumps between bundles, and with 4
// KiB pages it would miss the TLB for every row. Where the kernel gives huge pages to memory files, too, it
// is one, which another process can map; else it is the process's alone. Pages are taken when first written
// (in a memory file by Populate), by the thread that does it, and so on that thread's NUMA node.
class BundleMemory {
 public:
  // ResourceExhausted, naming the size, if the system refuses.
  static absl::StatusOr<BundleMemory> Map(int64_t bytes);
  // Memory of the process alone.
  static absl::StatusOr<BundleMemory> MapPrivate(int64_t bytes);
  BundleMemory(BundleMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)),
        file_(std::move(other.file_)) {}
  BundleMemory& operator=(BundleMemory&&) = delete;
  ~BundleMemory();

  // Before anything is written: takes the huge pages of a memory file, with all members of the pool. Returns
  // the bytes that got some, 0 where there is no file.
  int64_t Populate(base::ThreadPool& pool);
  // After the last write through a mapping yet to be made: forbids it, and any change of size.
  absl::Status Seal();

  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // The memory file; -1: none.
  int file() const { return file_.get(); }

 private:
  BundleMemory(uint8_t* data, int64_t bytes, base::UniqueFd file)
      : data_(data), bytes_(bytes), file_(std::move(file)) {}

  uint8_t* data_;
  int64_t bytes_;
  base::UniqueFd file_;
};

}  // namespace isotherm::cpu_worker

#endif  // ISOTHERM_CPU_WORKER_STORE_BUNDLE_MEMORY_H_
