#include "cpu_worker/store/bundle_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace isotherm::cpu_worker {
namespace {

constexpr int64_t kHugePage = 2 << 20;

// Of Linux 6.1; older C libraries lack the name.
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

// Each call first waits for every processor to settle its page lists.
constexpr int64_t kPagesAtOnce = 16;

// Backs part of a memory file that is yet to be written with huge pages. A kernel that has none leaves it as
// it is. None is made of a hole: something must have been written there.
bool TakeHugePages(uint8_t* data, int64_t pages) {
  for (int64_t page = 0; page < pages; ++page) data[page * kHugePage] = 0;
  return madvise(data, pages * kHugePage, MADV_COLLAPSE) == 0;
}

// Maps the whole file where huge pages can be: at a multiple of their size. Null if the system refuses.
uint8_t* MapAligned(int file, int64_t bytes) {
  void* const room =
      mmap(nullptr, bytes + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<uint8_t*>(room);
  uint8_t* const data =
      begin + (kHugePage - static_cast<int64_t>(reinterpret_cast<uintptr_t>(room) % kHugePage)) % kHugePage;
  void* const mapped = mmap(data, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
  if (mapped == MAP_FAILED) {
    munmap(room, bytes + kHugePage);
    return nullptr;
  }
  if (data > begin) munmap(begin, data - begin);
  munmap(data + bytes, begin + kHugePage - data);
  return data;
}

}  // namespace

absl::StatusOr<BundleMemory> BundleMemory::Map(int64_t bytes) {
  base::UniqueFd file(memfd_create("isotherm-neurons", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  // A file of whole huge pages, as part of one cannot be taken.
  const int64_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  if (!file.valid() || ftruncate(file.get(), whole) != 0) return MapPrivate(bytes);
  uint8_t* const data = MapAligned(file.get(), whole);
  if (data == nullptr) return MapPrivate(bytes);
  BundleMemory memory(data, whole, std::move(file));
  if (whole == 0 || !TakeHugePages(memory.data(), 1)) return MapPrivate(bytes);
  return memory;
}

absl::StatusOr<BundleMemory> BundleMemory::MapPrivate(int64_t bytes) {
  void* const data =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("cannot map %d bytes for neurons: %s", bytes, strerror(errno)));
  }
  // Advice: where the kernel has no huge pages the bundles are merely slower.
  madvise(data, bytes, MADV_HUGEPAGE);
  return BundleMemory(static_cast<uint8_t*>(data), bytes, base::UniqueFd());
}

BundleMemory::~BundleMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

int64_t BundleMemory::Populate(base::ThreadPool& pool) {
  if (!file_.valid()) return 0;
  std::atomic<int64_t> taken = 0;
  pool.ParallelFor(bytes_ / kHugePage, kPagesAtOnce, [&](int64_t begin, int64_t end, int) {
    if (TakeHugePages(data_ + begin * kHugePage, end - begin)) {
      taken.fetch_add(end - begin, std::memory_order_relaxed);
      return;
    }
    // The system gives up at the first page that it does not get: the others have yet to be tried.
    for (int64_t page = begin; page < end; ++page) {
      if (TakeHugePages(data_ + page * kHugePage, 1)) taken.fetch_add(1, std::memory_order_relaxed);
    }
  });
  return taken * kHugePage;
}

absl::Status BundleMemory::Seal() {
  if (!file_.valid()) return absl::OkStatus();
  if (fcntl(file_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) == 0) {
    return absl::OkStatus();
  }
  return absl::ErrnoToStatus(errno, "cannot seal the neurons' memory");
}

}  // namespace isotherm::cpu_worker
