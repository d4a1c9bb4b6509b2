#include "cpu_worker/store/bundle_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_format.h"

namespace isotherm::cpu_worker {

absl::StatusOr<BundleMemory> BundleMemory::Map(int64_t bytes) {
  void* data =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("cannot map %d bytes for neurons: %s", bytes, strerror(errno)));
  }
  // Advice: where the kernel has no huge pages the bundles are merely slower.
  madvise(data, bytes, MADV_HUGEPAGE);
  return BundleMemory(static_cast<uint8_t*>(data), bytes);
}

BundleMemory::~BundleMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

}  // namespace isotherm::cpu_worker
