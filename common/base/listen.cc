#include "common/base/listen.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace isotherm::base {
namespace {

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

absl::StatusOr<AddressList> Resolve(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 ||
      port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("'", address, "' is not host:port"));
  }
  std::string host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  if (host.empty())
    return absl::InvalidArgumentError(absl::StrCat("'", address, "' has no host; 0.0.0.0 means all"));

  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (error != 0) {
    return absl::InvalidArgumentError(absl::StrCat("'", address, "': ", gai_strerror(error)));
  }
  return AddressList(list, &freeaddrinfo);
}

// 0, or the error number.
int TryBind(const addrinfo& address) {
  const UniqueFd fd(socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC, address.ai_protocol));
  if (!fd.valid()) return errno;
  // As servers do: connections of an earlier process that are still closing do not count as use.
  const int on = 1;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  return bind(fd.get(), address.ai_addr, address.ai_addrlen) == 0 ? 0 : errno;
}

bool TryConnect(const addrinfo& address) {
  const UniqueFd fd(
      socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, address.ai_protocol));
  if (!fd.valid()) return false;
  if (connect(fd.get(), address.ai_addr, address.ai_addrlen) == 0) return true;
  if (errno != EINPROGRESS) return false;
  pollfd writable = {fd.get(), POLLOUT, 0};
  int error = 0;
  socklen_t length = sizeof error;
  return poll(&writable, 1, /*milliseconds=*/1000) == 1 &&
         getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0;
}

absl::StatusOr<bool> SomebodyAccepts(const std::string& path, const sockaddr_un& address) {
  // Non-blocking: a server with a full backlog is a running server too (EAGAIN).
  const UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, "socket");
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return true;
  if (errno == ECONNREFUSED || errno == ENOENT) return false;
  if (errno == EAGAIN || errno == EINPROGRESS) return true;
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot listen on unix:", path));
}

}  // namespace

absl::Status CheckCanListen(const std::string& address) {
  ISOTHERM_ASSIGN_OR_RETURN(const AddressList list, Resolve(address));
  int last_error = 0;
  bool bound = false;
  for (const addrinfo* candidate = list.get(); candidate != nullptr; candidate = candidate->ai_next) {
    const int error = TryBind(*candidate);
    if (error == EADDRINUSE) {
      return absl::AlreadyExistsError(absl::StrCat("cannot listen on ", address, ": the port is in use"));
    }
    // A host without IPv6 cannot bind the ::1 that "localhost" also stands for; one address is enough.
    bound |= error == 0;
    if (error != 0) last_error = error;
  }
  return bound ? absl::OkStatus()
               : absl::ErrnoToStatus(last_error, absl::StrCat("cannot listen on ", address));
}

absl::Status PrepareSocketPath(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' is ", path.size(),
                                                   " bytes long; the path of a Unix socket has 1 to ",
                                                   sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());

  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  struct stat status;
  if (stat(directory.c_str(), &status) != 0 || access(directory.c_str(), W_OK | X_OK) != 0) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("cannot listen on unix:", path, ": directory ", directory));
  }
  if (lstat(path.c_str(), &status) != 0) return absl::OkStatus();
  if (!S_ISSOCK(status.st_mode)) {
    return absl::AlreadyExistsError(
        absl::StrCat("cannot listen on unix:", path, ": it exists and is no socket"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const bool in_use, SomebodyAccepts(path, address));
  if (in_use) {
    return absl::AlreadyExistsError(
        absl::StrCat("cannot listen on unix:", path, ": address in use by a running server"));
  }
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot remove the stale socket ", path));
  }
  return absl::OkStatus();
}

bool CanConnect(const std::string& address) {
  const absl::StatusOr<AddressList> list = Resolve(address);
  if (!list.ok()) return false;
  for (const addrinfo* candidate = list->get(); candidate != nullptr; candidate = candidate->ai_next) {
    if (TryConnect(*candidate)) return true;
  }
  return false;
}

}  // namespace isotherm::base
