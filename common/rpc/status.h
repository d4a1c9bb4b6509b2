#ifndef ISOTHERM_COMMON_RPC_STATUS_H_
#define ISOTHERM_COMMON_RPC_STATUS_H_

#include <grpcpp/support/status.h>

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

// Statuses across the wire. The google.rpc error details of a call (RetryInfo, BadRequest) are the payloads
// of an absl::Status under their type URLs, so they survive ToGrpc and FromGrpc.
namespace isotherm::rpc {

// Messages and descriptions are cut to 1 KiB: the trailer they travel in may be no longer than 8 KiB.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

// RESOURCE_EXHAUSTED with RetryInfo: a full queue.
absl::Status ResourceExhaustedError(const std::string& message, absl::Duration retry_after);
grpc::Status ResourceExhausted(const std::string& message, absl::Duration retry_after);

// INVALID_ARGUMENT with BadRequest that names the field: "sampling.temperature".
absl::Status InvalidField(const std::string& field, const std::string& problem);

// What the details say, on the client's side; nullopt where there are none.
std::optional<absl::Duration> RetryAfter(const absl::Status& status);
std::optional<std::string> ViolatedField(const absl::Status& status);

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_STATUS_H_
