#ifndef ISOTHERM_COMMON_RPC_CLIENT_FLAGS_H_
#define ISOTHERM_COMMON_RPC_CLIENT_FLAGS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/command_line.h"
#include "common/rpc/channel.h"

// The flags of every process that calls another: how it tells the right server, and shows who it is.
namespace isotherm::rpc {

// For base::Program. --insecure is AccessFlags' where a server has both.
base::FlagGroup ConnectionFlags();

// What the flags say; no API key.
absl::StatusOr<ClientCredentials> CredentialsFromFlags(const std::string& api_key = "");

// UsageError if `address`, the value of `flag`, is none (base::CheckAddress) or would be reached in plain
// text over a network and --insecure does not allow it.
absl::Status CheckReachedSafely(const std::string& flag, const std::string& address);

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_CLIENT_FLAGS_H_
