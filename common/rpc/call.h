#ifndef ISOTHERM_COMMON_RPC_CALL_H_
#define ISOTHERM_COMMON_RPC_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <functional>

#include "absl/status/status.h"

namespace isotherm::rpc {

// Runs a handler: catches exceptions (INTERNAL), maps the status, counts isotherm_rpc_total{method,code} and
// observes isotherm_rpc_seconds{method}. Every handler body goes through it. The body does not run if the
// call's deadline has passed, and a body that ends as cancelled because the deadline passed counts as
// DEADLINE_EXCEEDED. `context` may be null in tests.
grpc::Status Handle(const char* method, grpc::ServerContext* context,
                    const std::function<absl::Status()>& body);

// Calls of this process that are inside Handle.
int RunningCalls();

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_CALL_H_
