#include "common/gguf/writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "common/gguf/format.h"

namespace isotherm::gguf {
namespace {

namespace fs = std::filesystem;

absl::Status CannotWrite(const std::string& path, int error, uint64_t file_bytes) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(absl::StrCat(path, ": there is no room for its ", file_bytes,
                                                       " bytes; free some or write to another disk"));
    case EFBIG:
      return absl::ResourceExhaustedError(absl::StrCat(
          path, ": its ", file_bytes,
          " bytes are more than a file may have here; raise 'ulimit -f' or write to another disk"));
    default:
      return absl::ErrnoToStatus(error, absl::StrCat(path, ": cannot be written"));
  }
}

absl::Status CheckReplaceable(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0 || S_ISREG(status.st_mode)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(path, ": is not a regular file; name one to write"));
}

// A rename lasts once the folder does. Where folders cannot be opened the system has to see to it.
void SyncFolderOf(const std::string& path) {
  const fs::path folder = fs::path(path).parent_path();
  const base::UniqueFd fd(open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.valid()) (void)fsync(fd.get());
}

}  // namespace

struct Writer::Impl {
  ~Impl() {
    if (!partial_path.empty()) (void)unlink(partial_path.c_str());
  }

  absl::Status WriteAll(absl::Span<const uint8_t> bytes) {
    while (!bytes.empty()) {
      const ssize_t count = write(fd.get(), bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return CannotWrite(path, errno, file_bytes);
      bytes.remove_prefix(static_cast<size_t>(count));
    }
    return absl::OkStatus();
  }

  // A full disk is known at once where the file system can reserve blocks, and by write() elsewhere.
  absl::Status Reserve() const {
    if (fallocate(fd.get(), 0, 0, static_cast<off_t>(file_bytes)) == 0) return absl::OkStatus();
    if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG) return CannotWrite(path, errno, file_bytes);
    return absl::OkStatus();
  }

  std::string path;
  std::string partial_path;  // empty when there is no such file (any more)
  base::UniqueFd fd;
  std::vector<uint64_t> tensor_bytes;
  uint64_t file_bytes = 0;
  size_t tensor = 0;     // the one that is being written
  uint64_t written = 0;  // of its bytes
};

Writer::Writer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Writer::~Writer() = default;

absl::StatusOr<std::unique_ptr<Writer>> Writer::Create(const std::string& path, const Header& header) {
  auto encoded = header.Encode();
  if (!encoded.ok()) {
    return absl::Status(encoded.status().code(), absl::StrCat(path, ": ", encoded.status().message()));
  }
  ISOTHERM_RETURN_IF_ERROR(CheckReplaceable(path));
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->tensor_bytes = std::move(encoded->tensor_bytes);
  impl->file_bytes = encoded->file_bytes;
  const std::string partial_path = absl::StrCat(path, ".part-", base::RandomId());
  impl->fd = base::UniqueFd(open(partial_path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!impl->fd.valid()) return CannotWrite(path, errno, impl->file_bytes);
  impl->partial_path = partial_path;
  ISOTHERM_RETURN_IF_ERROR(impl->Reserve());
  ISOTHERM_RETURN_IF_ERROR(impl->WriteAll(encoded->bytes));
  return std::unique_ptr<Writer>(new Writer(std::move(impl)));
}

absl::Status Writer::Append(absl::Span<const uint8_t> data) {
  Impl& impl = *impl_;
  if (data.empty()) return absl::OkStatus();
  if (impl.tensor == impl.tensor_bytes.size() ||
      data.size() > impl.tensor_bytes[impl.tensor] - impl.written) {
    return absl::FailedPreconditionError(absl::StrCat(impl.path, ": tensor ", impl.tensor + 1, " of ",
                                                      impl.tensor_bytes.size(), ": ", data.size(),
                                                      " more bytes than its header has room for"));
  }
  ISOTHERM_RETURN_IF_ERROR(impl.WriteAll(data));
  impl.written += data.size();
  if (impl.written < impl.tensor_bytes[impl.tensor]) return absl::OkStatus();
  const uint64_t padding = AlignUp(impl.written, kDefaultAlignment) - impl.written;
  impl.written = 0;
  ++impl.tensor;
  return impl.WriteAll(std::vector<uint8_t>(padding));
}

absl::Status Writer::Commit() {
  Impl& impl = *impl_;
  if (impl.tensor < impl.tensor_bytes.size()) {
    return absl::FailedPreconditionError(absl::StrCat(
        impl.path, ": data of ", impl.tensor_bytes.size() - impl.tensor, " of its tensors is missing"));
  }
  // Some file systems report a full disk only here.
  if (fsync(impl.fd.get()) != 0 || close(impl.fd.release()) != 0) {
    return CannotWrite(impl.path, errno, impl.file_bytes);
  }
  if (rename(impl.partial_path.c_str(), impl.path.c_str()) != 0) {
    return CannotWrite(impl.path, errno, impl.file_bytes);
  }
  impl.partial_path.clear();
  SyncFolderOf(impl.path);
  return absl::OkStatus();
}

}  // namespace isotherm::gguf
