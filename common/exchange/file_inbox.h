#ifndef ISOTHERM_COMMON_EXCHANGE_FILE_INBOX_H_
#define ISOTHERM_COMMON_EXCHANGE_FILE_INBOX_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

// How an open file without a name gets from one process to another: through a socket in the shared-memory
// directory that both see, so that they need nothing else in common, containers included.
namespace isotherm::exchange {

// The receiver's socket. Thread-compatible.
class FileInbox {
 public:
  // A socket in `directory` that processes of this user alone can send to.
  static absl::StatusOr<std::unique_ptr<FileInbox>> Create(const std::string& directory);
  ~FileInbox();  // removes the name
  FileInbox(const FileInbox&) = delete;
  FileInbox& operator=(const FileInbox&) = delete;

  // Inside the directory; nobody can guess it.
  const std::string& name() const { return name_; }
  // What was sent first, without waiting: the sender is done before it says so elsewhere. NotFound where
  // nothing was. What it is must be checked: others may send, too.
  absl::StatusOr<base::UniqueFd> Take();

 private:
  FileInbox(std::string directory, std::string name, base::UniqueFd socket);

  const std::string directory_;
  const std::string name_;
  const base::UniqueFd socket_;
};

// Sends an open file to the inbox of that name in `directory`, without waiting. The name comes from a peer:
// FailedPrecondition unless it is one of ours.
absl::Status SendFile(int file, const std::string& directory, const std::string& inbox);

// Whether the socket at `path` is an inbox that nobody has open any more.
bool IsAbandonedInbox(const std::string& path);

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_FILE_INBOX_H_
