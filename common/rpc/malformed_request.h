#ifndef ISOTHERM_COMMON_RPC_MALFORMED_REQUEST_H_
#define ISOTHERM_COMMON_RPC_MALFORMED_REQUEST_H_

#include <grpcpp/support/server_interceptor.h>

#include <memory>

namespace isotherm::rpc {

// Takes what the protobuf library says, which otherwise goes to standard error past the log. Once is enough.
void RedirectProtobufLog();

// gRPC refuses a request that is no valid message, such as one with text that is not UTF-8, before a handler
// sees it, as INTERNAL and without a word. This makes that INVALID_ARGUMENT which names the field, where the
// protobuf library did (RedirectProtobufLog). For calls with one request; messages of a client's stream are
// read by its handler.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeMalformedRequestNamer();

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_MALFORMED_REQUEST_H_
