#ifndef ISOTHERM_COMMON_RPC_CALL_H_
#define ISOTHERM_COMMON_RPC_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <cstdint>
#include <functional>

#include "absl/status/status.h"

namespace isotherm::rpc {

// What says which request a call belongs to (common/observe/trace.h), in requests and in answers.
inline constexpr char kTraceparentHeader[] = "traceparent";
inline constexpr char kRequestIdHeader[] = "x-request-id";

// Runs a handler: asks whether the caller may come in (admission.h), catches exceptions (INTERNAL), maps the
// status, counts isotherm_rpc_total{method,code} and observes isotherm_rpc_seconds{method}. The body runs in
// the scope of the call's trace, which the answer's initial metadata tells; a log line says how the call
// ended. Every handler body goes through it. The body does not run if the call's deadline has passed, and a
// body that ends as cancelled because the deadline passed counts as DEADLINE_EXCEEDED. `context` may be null
// in tests.
grpc::Status Handle(const char* method, grpc::ServerContext* context,
                    const std::function<absl::Status()>& body);

// Counts tokens computed for the call whose body this thread runs against the limits of its API key, if it
// has one.
void ChargeTokens(int64_t tokens);

// Calls of this process that are inside Handle.
int RunningCalls();
// Those of them that came from this machine, through a Unix socket or a loopback address.
int RunningLocalCalls();

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_CALL_H_
