#ifndef ISOTHERM_GATEWAY_API_CALL_SCOPE_H_
#define ISOTHERM_GATEWAY_API_CALL_SCOPE_H_

#include <grpcpp/grpcpp.h>

#include <memory>

#include "absl/time/time.h"
#include "gateway/engine/caller.h"

namespace isotherm::gateway {

// Lets the engine see whether an RPC still wants its answer, for as long as the handler runs and no longer.
class CallScope {
 public:
  explicit CallScope(grpc::ServerContext* context)
      : caller_(std::make_shared<Caller>([context] { return context->IsCancelled(); },
                                         absl::FromChrono(context->deadline()))) {}
  ~CallScope() { caller_->Leave(); }
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;

  const std::shared_ptr<Caller>& caller() const { return caller_; }

 private:
  const std::shared_ptr<Caller> caller_;
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_API_CALL_SCOPE_H_
