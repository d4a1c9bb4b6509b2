#include "common/gguf/mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/unique_fd.h"

namespace isotherm::gguf {
namespace {

// One call reads no further ahead than the disk's read-ahead goes, which is this where nobody set another,
// whatever it is asked for.
constexpr uintptr_t kAdviceBytes = 128 << 10;

uintptr_t PageBytes() {
  static const uintptr_t bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

uintptr_t RoundDown(uintptr_t address) { return address & ~(PageBytes() - 1); }
uintptr_t RoundUp(uintptr_t address) { return RoundDown(address + PageBytes() - 1); }

// Advice may fail for lack of resources; the bytes read the same either way.
void Advise(uintptr_t begin, uintptr_t end, int advice) {
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

}  // namespace

absl::StatusOr<Mapping> Mapping::Open(const std::string& path) {
  // Without O_NONBLOCK the opening of a FIFO would wait for a writer.
  const base::UniqueFd descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!descriptor.valid()) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot be opened"));

  struct stat status;
  if (fstat(descriptor.get(), &status) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot be examined"));
  if (!S_ISREG(status.st_mode))
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not a regular file"));
  if (status.st_size <= 0)
    return absl::InvalidArgumentError(absl::StrCat(path, ": is empty; fetch it again"));

  const auto size = static_cast<size_t>(status.st_size);
  void* address = mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor.get(), 0);
  if (address == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": ", size, " bytes cannot be mapped"));
  }
  return Mapping(absl::MakeConstSpan(static_cast<const uint8_t*>(address), size));
}

Mapping::Mapping(Mapping&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

Mapping::~Mapping() {
  if (!bytes_.empty()) munmap(const_cast<uint8_t*>(bytes_.data()), bytes_.size());
}

bool Mapping::Contains(absl::Span<const uint8_t> part) const {
  return !part.empty() && part.data() >= bytes_.data() &&
         part.data() + part.size() <= bytes_.data() + bytes_.size();
}

void Mapping::Release(absl::Span<const uint8_t> part) const {
  if (!Contains(part)) return;
  const auto begin = reinterpret_cast<uintptr_t>(part.data());
  Advise(RoundUp(begin), RoundDown(begin + part.size()), MADV_DONTNEED);
}

void Mapping::Prefetch(absl::Span<const uint8_t> part) const {
  if (!Contains(part)) return;
  const auto begin = RoundDown(reinterpret_cast<uintptr_t>(part.data()));
  const auto end = RoundUp(reinterpret_cast<uintptr_t>(part.data()) + part.size());
  for (uintptr_t piece = begin; piece < end; piece += kAdviceBytes) {
    Advise(piece, std::min(piece + kAdviceBytes, end), MADV_WILLNEED);
  }
}

}  // namespace isotherm::gguf
