#ifndef ISOTHERM_COMMON_BASE_LISTEN_H_
#define ISOTHERM_COMMON_BASE_LISTEN_H_

#include <string>

#include "absl/status/status.h"

// Why a server cannot listen, in words. The libraries that listen report only that they could not.
namespace isotherm::base {

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
