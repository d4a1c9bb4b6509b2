#include "common/exchange/region_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/host.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"
#include "common/exchange/file_inbox.h"

namespace isotherm::exchange {
namespace {

constexpr char kNamePrefix[] = "isotherm-exchange-";

// Between its creation and its lock a file looks abandoned to another process, which may remove it. Then it
// is made once more; twice in a row does not happen.
constexpr int kAttempts = 8;

absl::Status NoRoom(const std::string& directory, const std::string& what, int64_t needed, int64_t free) {
  return absl::ResourceExhaustedError(absl::StrFormat(
      "%s has %.1f MiB free, %s needs %.1f MiB: give it more room (containers: shm_size, or a memory volume "
      "with a larger sizeLimit), point --shm-directory at a larger tmpfs, or lower the rows of a step",
      directory, static_cast<double>(free) / (1 << 20), what, static_cast<double>(needed) / (1 << 20)));
}

bool HasName(int fd) {
  struct stat info;
  return fstat(fd, &info) == 0 && info.st_nlink > 0;
}

void RemoveIfAbandoned(const std::string& path) {
  const base::UniqueFd fd(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  const bool abandoned = fd.valid() ? flock(fd.get(), LOCK_EX | LOCK_NB) == 0 : IsAbandonedInbox(path);
  if (abandoned) unlink(path.c_str());
}

}  // namespace

std::string MakeRegionName() { return kNamePrefix + base::RandomId(); }

bool IsRegionName(const std::string& name) {
  return absl::StartsWith(name, kNamePrefix) && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

absl::StatusOr<RegionFile> CreateRegionFile(const std::string& directory) {
  std::string path;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    RegionFile file;
    file.directory = directory;
    file.name = MakeRegionName();
    path = directory + "/" + file.name;
    file.fd.reset(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, S_IRUSR | S_IWUSR));
    if (!file.fd.valid()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", path));
    if (flock(file.fd.get(), LOCK_EX) != 0) {
      const int error = errno;
      unlink(path.c_str());
      return absl::ErrnoToStatus(error, absl::StrCat("cannot lock ", path));
    }
    if (HasName(file.fd.get())) return file;
  }
  return absl::UnavailableError(absl::StrCat(path, " was removed by another process as soon as it was made"));
}

void RegionFile::RemoveName() {
  if (name.empty()) return;
  unlink((directory + "/" + name).c_str());
  name.clear();
  fd.reset();
}

absl::Status AllocateRegionFile(int fd, int64_t bytes, const std::string& directory,
                                const std::string& what) {
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t free, base::FreeSpace(directory));
  // ftruncate alone would leave holes, and the first touch of a hole without a page to fill it ends in
  // SIGBUS.
  const int error = bytes > free ? ENOSPC : posix_fallocate(fd, 0, bytes);
  if (error == 0) return absl::OkStatus();
  if (error == ENOSPC) return NoRoom(directory, what, bytes, free);
  return absl::ErrnoToStatus(error, absl::StrCat("cannot allocate ", bytes, " bytes in ", directory));
}

absl::StatusOr<base::UniqueFd> OpenRegionFile(const std::string& directory, const std::string& name,
                                              int64_t bytes) {
  if (!IsRegionName(name)) {
    return absl::FailedPreconditionError(absl::StrCat("the peer named a region '", name, "'"));
  }
  const std::string path = directory + "/" + name;
  base::UniqueFd fd(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open the exchange region ", path));
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot stat ", path));
  // A mapping longer than its file would end in SIGBUS.
  if (!S_ISREG(info.st_mode) || info.st_size != bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("the exchange region ", path, " has ", info.st_size, " bytes, announced were ", bytes));
  }
  constexpr int64_t kBlock = 512;  // of st_blocks, whatever the file system
  if (info.st_blocks * kBlock < bytes) {
    return absl::FailedPreconditionError(absl::StrCat("the exchange region ", path, " has holes"));
  }
  return fd;
}

absl::StatusOr<std::byte*> MapRegionFile(int fd, int64_t bytes) {
  void* const base =
      mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (base == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", bytes, " bytes of shared memory"));
  }
  return static_cast<std::byte*>(base);
}

void RemoveAbandonedRegionFiles(const std::string& directory) {
  std::error_code ignored;
  for (std::filesystem::directory_iterator entry(directory, ignored), end; !ignored && entry != end;
       entry.increment(ignored)) {
    if (IsRegionName(entry->path().filename().string())) RemoveIfAbandoned(entry->path().string());
  }
}

}  // namespace isotherm::exchange
