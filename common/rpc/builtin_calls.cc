#include "common/rpc/builtin_calls.h"

#include <grpcpp/server_context.h>

#include "absl/strings/match.h"
#include "common/rpc/upload_budget.h"

namespace isotherm::rpc {
namespace {

namespace api = grpc::experimental;

class BuiltinCall final : public api::Interceptor {
 public:
  explicit BuiltinCall(api::ServerRpcInfo* info) : info_(info) {}
  void Intercept(api::InterceptorBatchMethods* methods) override {
    // The caller's address is not known before.
    if (methods->QueryInterceptionHookPoint(api::InterceptionHookPoints::POST_RECV_INITIAL_METADATA)) {
      CountArrivedCall(info_->server_context()->peer());
    }
    methods->Proceed();
  }

 private:
  api::ServerRpcInfo* const info_;
};

class BuiltinCallCounter final : public api::ServerInterceptorFactoryInterface {
 public:
  api::Interceptor* CreateServerInterceptor(api::ServerRpcInfo* info) override {
    return absl::StartsWith(info->method(), "/grpc.") ? new BuiltinCall(info) : nullptr;
  }
};

}  // namespace

std::unique_ptr<api::ServerInterceptorFactoryInterface> MakeBuiltinCallCounter() {
  return std::make_unique<BuiltinCallCounter>();
}

}  // namespace isotherm::rpc
