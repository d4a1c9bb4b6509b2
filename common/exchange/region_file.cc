#include "common/exchange/region_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/random_id.h"

namespace isotherm::exchange {
namespace {

constexpr char kNamePrefix[] = "isotherm-exchange-";

// Between its creation and its lock a file looks abandoned to another process, which may remove it. Then it
// is made once more; twice in a row does not happen.
constexpr int kAttempts = 8;

bool HasName(int fd) {
  struct stat info;
  return fstat(fd, &info) == 0 && info.st_nlink > 0;
}

void RemoveIfAbandoned(const std::string& path) {
  const base::UniqueFd fd(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (fd.valid() && flock(fd.get(), LOCK_EX | LOCK_NB) == 0) unlink(path.c_str());
}

}  // namespace

bool IsRegionName(const std::string& name) {
  return absl::StartsWith(name, kNamePrefix) && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

absl::StatusOr<RegionFile> CreateRegionFile(const std::string& directory) {
  std::string path;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    RegionFile file;
    file.name = kNamePrefix + base::RandomId();
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

void RemoveAbandonedRegionFiles(const std::string& directory) {
  std::error_code ignored;
  for (std::filesystem::directory_iterator entry(directory, ignored), end; !ignored && entry != end;
       entry.increment(ignored)) {
    if (IsRegionName(entry->path().filename().string())) RemoveIfAbandoned(entry->path().string());
  }
}

}  // namespace isotherm::exchange
