#include "common/exchange/file_inbox.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/exchange/region_file.h"

namespace isotherm::exchange {
namespace {

absl::StatusOr<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is too long for the name of a socket"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

base::UniqueFd OpenSocket() {
  return base::UniqueFd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

const sockaddr* Generic(const sockaddr_un& address) { return reinterpret_cast<const sockaddr*>(&address); }

// One byte with one open file.
class Message {
 public:
  Message() {
    header_.msg_iov = &part_;
    header_.msg_iovlen = 1;
    header_.msg_control = control_;
    header_.msg_controllen = sizeof(control_);
  }
  msghdr* header() { return &header_; }

  void Attach(int file) {
    cmsghdr* const attachment = CMSG_FIRSTHDR(&header_);
    attachment->cmsg_level = SOL_SOCKET;
    attachment->cmsg_type = SCM_RIGHTS;
    attachment->cmsg_len = CMSG_LEN(sizeof(file));
    std::memcpy(CMSG_DATA(attachment), &file, sizeof(file));
  }
  base::UniqueFd Detach() {
    const cmsghdr* const attachment = CMSG_FIRSTHDR(&header_);
    int file = -1;
    if (attachment != nullptr && attachment->cmsg_level == SOL_SOCKET &&
        attachment->cmsg_type == SCM_RIGHTS && attachment->cmsg_len == CMSG_LEN(sizeof(file))) {
      std::memcpy(&file, CMSG_DATA(attachment), sizeof(file));
    }
    return base::UniqueFd(file);
  }

 private:
  char byte_ = 0;
  alignas(cmsghdr) char control_[CMSG_SPACE(sizeof(int))] = {};
  iovec part_ = {&byte_, 1};
  msghdr header_ = {};
};

}  // namespace

absl::StatusOr<std::unique_ptr<FileInbox>> FileInbox::Create(const std::string& directory) {
  std::string name = MakeRegionName();
  const std::string path = directory + "/" + name;
  ISOTHERM_ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  base::UniqueFd socket = OpenSocket();
  // The name gets the socket's own permissions, so that it is never open to others.
  if (!socket.valid() || fchmod(socket.get(), S_IRUSR | S_IWUSR) != 0 ||
      bind(socket.get(), Generic(address), sizeof(address)) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot make the socket ", path));
  }
  return std::unique_ptr<FileInbox>(new FileInbox(directory, std::move(name), std::move(socket)));
}

FileInbox::FileInbox(std::string directory, std::string name, base::UniqueFd socket)
    : directory_(std::move(directory)), name_(std::move(name)), socket_(std::move(socket)) {}

FileInbox::~FileInbox() { unlink((directory_ + "/" + name_).c_str()); }

absl::StatusOr<base::UniqueFd> FileInbox::Take() {
  Message message;
  if (recvmsg(socket_.get(), message.header(), MSG_CMSG_CLOEXEC) < 0) {
    if (errno == EAGAIN) return absl::NotFoundError("no file was sent");
    return absl::ErrnoToStatus(errno, "cannot receive a file");
  }
  base::UniqueFd file = message.Detach();
  if (!file.valid()) return absl::FailedPreconditionError("what was sent is not one open file");
  return file;
}

absl::Status SendFile(int file, const std::string& directory, const std::string& inbox) {
  if (!IsRegionName(inbox)) {
    return absl::FailedPreconditionError(absl::StrCat("the peer named an inbox '", inbox, "'"));
  }
  const std::string path = directory + "/" + inbox;
  ISOTHERM_ASSIGN_OR_RETURN(sockaddr_un address, AddressOf(path));
  const base::UniqueFd socket = OpenSocket();
  Message message;
  message.Attach(file);
  message.header()->msg_name = &address;
  message.header()->msg_namelen = sizeof(address);
  if (!socket.valid() || sendmsg(socket.get(), message.header(), MSG_NOSIGNAL) < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot send a file to ", path));
  }
  return absl::OkStatus();
}

bool IsAbandonedInbox(const std::string& path) {
  const absl::StatusOr<sockaddr_un> address = AddressOf(path);
  const base::UniqueFd socket = OpenSocket();
  return address.ok() && socket.valid() && connect(socket.get(), Generic(*address), sizeof(*address)) != 0 &&
         errno == ECONNREFUSED;
}

}  // namespace isotherm::exchange
