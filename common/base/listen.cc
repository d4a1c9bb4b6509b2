#include "common/base/listen.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
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
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace isotherm::base {
namespace {

constexpr char kUnixPrefix[] = "unix:";

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

struct HostAndPort {
  std::string host;
  int port = 0;
};

absl::StatusOr<HostAndPort> Parse(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 ||
      port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", address, "' is not host:port, with a port from 0 to 65535"));
  }
  std::string host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  if (host.empty())
    return absl::InvalidArgumentError(absl::StrCat("'", address, "' has no host; 0.0.0.0 means all"));
  return HostAndPort{std::move(host), port};
}

absl::StatusOr<AddressList> Resolve(const std::string& address) {
  ISOTHERM_ASSIGN_OR_RETURN(const HostAndPort parsed, Parse(address));
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int error = getaddrinfo(parsed.host.c_str(), std::to_string(parsed.port).c_str(), &hints, &list);
  if (error != 0) {
    return absl::InvalidArgumentError(absl::StrCat("'", address, "': ", gai_strerror(error)));
  }
  return AddressList(list, &freeaddrinfo);
}

// A socket bound to the address, at `port` unless that is 0; without one `errno` says why.
UniqueFd Bind(const addrinfo& address, int port) {
  UniqueFd fd(
      socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, address.ai_protocol));
  if (!fd.valid()) return fd;
  // As servers do: connections of an earlier process that are still closing do not count as use.
  const int on = 1;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_storage bound{};
  std::memcpy(&bound, address.ai_addr, address.ai_addrlen);
  if (port != 0 && address.ai_family == AF_INET) {
    reinterpret_cast<sockaddr_in*>(&bound)->sin_port = htons(static_cast<uint16_t>(port));
  } else if (port != 0) {
    reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port = htons(static_cast<uint16_t>(port));
  }
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&bound), address.ai_addrlen) != 0) fd.reset();
  return fd;
}

int PortOf(const UniqueFd& socket) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length);
  return ntohs(address.ss_family == AF_INET ? reinterpret_cast<sockaddr_in*>(&address)->sin_port
                                            : reinterpret_cast<sockaddr_in6*>(&address)->sin6_port);
}

bool IsLoopback(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    return ntohl(reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
  }
  return address.sa_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr);
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

absl::StatusOr<ListeningSockets> BindTcp(const std::string& address) {
  ISOTHERM_ASSIGN_OR_RETURN(const AddressList list, Resolve(address));
  ListeningSockets bound;
  int last_error = 0;
  for (const addrinfo* candidate = list.get(); candidate != nullptr; candidate = candidate->ai_next) {
    UniqueFd fd = Bind(*candidate, bound.port);
    if (!fd.valid() && errno == EADDRINUSE) {
      return absl::AlreadyExistsError(absl::StrCat("cannot listen on ", address, ": the port is in use"));
    }
    // A host without IPv6 cannot bind the ::1 that "localhost" also stands for; one address is enough.
    if (!fd.valid()) {
      last_error = errno;
      continue;
    }
    bound.port = PortOf(fd);
    bound.sockets.push_back(std::move(fd));
  }
  if (bound.sockets.empty()) {
    return absl::ErrnoToStatus(last_error, absl::StrCat("cannot listen on ", address));
  }
  return bound;
}

absl::StatusOr<sockaddr_un> UnixAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' is ", path.size(),
                                                   " bytes long; the path of a Unix socket has 1 to ",
                                                   sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

}  // namespace

absl::StatusOr<ListeningSockets> ListenTcp(const std::string& address) {
  ISOTHERM_ASSIGN_OR_RETURN(ListeningSockets bound, BindTcp(address));
  for (const UniqueFd& socket : bound.sockets) {
    // Accepted connections inherit it: small messages leave at once.
    const int on = 1;
    setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (listen(socket.get(), SOMAXCONN) != 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot listen on ", address));
    }
  }
  return bound;
}

absl::Status CheckCanListen(const std::string& address) { return BindTcp(address).status(); }

absl::Status CheckAddress(const std::string& address) {
  if (absl::StartsWith(address, kUnixPrefix)) {
    return UnixAddress(address.substr(sizeof kUnixPrefix - 1)).status();
  }
  return Parse(address).status();
}

bool IsLoopback(const std::string& address) {
  const absl::StatusOr<AddressList> list = Resolve(address);
  if (!list.ok()) return false;
  for (const addrinfo* candidate = list->get(); candidate != nullptr; candidate = candidate->ai_next) {
    if (!IsLoopback(*candidate->ai_addr)) return false;
  }
  return true;
}

absl::StatusOr<ListeningSockets> ListenUnix(const std::string& path, mode_t mode) {
  ISOTHERM_RETURN_IF_ERROR(PrepareSocketPath(path));
  ISOTHERM_ASSIGN_OR_RETURN(const sockaddr_un address, UnixAddress(path));
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // The file that bind makes has the socket's own permissions less the umask, so that it is never wider than
  // asked for; chmod then gives back what the umask took.
  if (!fd.valid() || fchmod(fd.get(), mode) != 0 ||
      bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      chmod(path.c_str(), mode) != 0 || listen(fd.get(), SOMAXCONN) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot listen on unix:", path));
  }
  ListeningSockets listening;
  listening.sockets.push_back(std::move(fd));
  return listening;
}

absl::Status PrepareSocketPath(const std::string& path) {
  ISOTHERM_ASSIGN_OR_RETURN(const sockaddr_un address, UnixAddress(path));

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
