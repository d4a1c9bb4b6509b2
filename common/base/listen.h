#ifndef ISOTHERM_COMMON_BASE_LISTEN_H_
#define ISOTHERM_COMMON_BASE_LISTEN_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

// Listening, and why a server cannot, in words. The libraries that listen report only that they could not.
namespace isotherm::base {

// One address of a server. "host:port" may stand for several addresses, all on the same port.
struct ListeningSockets {
  std::vector<UniqueFd> sockets;  // non-blocking
  int port = 0;                   // 0: a Unix socket
};

// Listens on every address that "host:port" stands for; port 0 picks one. Errors are CheckCanListen's.
absl::StatusOr<ListeningSockets> ListenTcp(const std::string& address);

// Listens on a Unix socket at `path` whose file has the permissions `mode` from its first moment. Errors are
// PrepareSocketPath's. The file stays behind.
absl::StatusOr<ListeningSockets> ListenUnix(const std::string& path, mode_t mode);

// InvalidArgument for what has neither the form "host:port" nor "unix:/path"; asks nobody for the host.
absl::Status CheckAddress(const std::string& address);

// Whether "host:port" can be reached from this machine only: a name that stands for loopback addresses alone.
// A name that stands for nothing yet is not.
bool IsLoopback(const std::string& address);

// Tries to bind every address that "host:port" stands for ("localhost:80", "[::1]:80", "0.0.0.0:0").
// InvalidArgument for what is no such address, AlreadyExists for a port in use, else what the system says;
// each names `address`. Another process may still take the port before it is listened on.
absl::Status CheckCanListen(const std::string& address);

// Makes way for a Unix socket at `path`: removes a socket that nobody accepts on. AlreadyExists if a running
// server accepts there or the path is no socket, NotFound if its directory is missing, InvalidArgument if the
// path is too long.
absl::Status PrepareSocketPath(const std::string& path);

// Whether somebody accepts a connection on "host:port" within a second. The connection is closed at once.
bool CanConnect(const std::string& address);

}  // namespace isotherm::base

#endif  // ISOTHERM_COMMON_BASE_LISTEN_H_
