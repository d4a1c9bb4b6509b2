#ifndef ISOTHERM_COMMON_RPC_BUILTIN_CALLS_H_
#define ISOTHERM_COMMON_RPC_BUILTIN_CALLS_H_

#include <grpcpp/support/server_interceptor.h>

#include <memory>

namespace isotherm::rpc {

// Counts the calls that reach gRPC's own services, health and reflection, which do not come through Handle,
// so that a connection that makes nothing else has its uploads accounted for. Calls of other services are
// left as they are.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeBuiltinCallCounter();

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_BUILTIN_CALLS_H_
