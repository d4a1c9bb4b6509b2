#include "common/rpc/malformed_request.h"

#include <google/protobuf/stubs/logging.h>
#include <spdlog/spdlog.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/rpc/status.h"

namespace isotherm::rpc {
namespace {

namespace api = grpc::experimental;

// What protobuf said last on this thread. On one thread gRPC makes the interceptors of a call, parses its
// request and, where that failed, sends the status.
thread_local std::string complaint;

void TakeLine(google::protobuf::LogLevel, const char*, int, const std::string& message) {
  spdlog::debug("protobuf: {}", message);
  complaint = message;
}

// "text" of "String field 'isotherm.v1.GenerateRequest.text' contains invalid UTF-8 data when parsing ...".
std::string FieldNamed(const std::string& message) {
  const std::vector<std::string> parts = absl::StrSplit(message, '\'');
  return parts.size() < 3 ? "" : parts[1].substr(parts[1].rfind('.') + 1);
}

absl::Status Explain(const char* method) {
  const std::string field = FieldNamed(std::exchange(complaint, ""));
  if (!field.empty()) return InvalidField(field, "is not valid UTF-8");
  return absl::InvalidArgumentError(absl::StrCat("what was sent is no valid request of ", method));
}

class MalformedRequest final : public api::Interceptor {
 public:
  // Forgets what was said of an earlier message.
  explicit MalformedRequest(const char* method) : method_(method) { complaint.clear(); }
  void Intercept(api::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(api::InterceptionHookPoints::PRE_SEND_STATUS)) {
      const grpc::Status status = methods->GetSendStatus();
      // Handlers always say something.
      if (status.error_code() == grpc::StatusCode::INTERNAL && status.error_message().empty()) {
        methods->ModifySendStatus(ToGrpc(Explain(method_)));
      }
    }
    methods->Proceed();
  }

 private:
  const char* const method_;
};

class MalformedRequestNamer final : public api::ServerInterceptorFactoryInterface {
 public:
  api::Interceptor* CreateServerInterceptor(api::ServerRpcInfo* info) override {
    const auto type = info->type();
    const bool one_request =
        type == api::ServerRpcInfo::Type::UNARY || type == api::ServerRpcInfo::Type::SERVER_STREAMING;
    return one_request ? new MalformedRequest(info->method()) : nullptr;
  }
};

}  // namespace

void RedirectProtobufLog() { google::protobuf::SetLogHandler(&TakeLine); }

std::unique_ptr<api::ServerInterceptorFactoryInterface> MakeMalformedRequestNamer() {
  return std::make_unique<MalformedRequestNamer>();
}

}  // namespace isotherm::rpc
