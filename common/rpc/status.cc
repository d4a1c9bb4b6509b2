#include "common/rpc/status.h"

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/rpc/error_details.pb.h"

namespace isotherm::rpc {
namespace {

constexpr char kTypeUrlPrefix[] = "type.googleapis.com/";
constexpr char kRetryInfoUrl[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr char kBadRequestUrl[] = "type.googleapis.com/google.rpc.BadRequest";

// gRPC accepts 8 KiB of metadata. A message takes up to three times its length in percent-encoding, once more
// in the details, and so does a description, both times 4/3 in base64.
constexpr size_t kMostMessageBytes = 1024;

std::string Clip(absl::string_view text) {
  if (text.size() <= kMostMessageBytes) return std::string(text);
  size_t end = kMostMessageBytes;
  const auto continues = [&](size_t i) { return (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80; };
  while (end > 0 && continues(end)) --end;  // between UTF-8 characters
  return absl::StrCat(text.substr(0, end), "...");
}

template <typename Message>
std::optional<Message> Payload(const absl::Status& status, const char* url) {
  const auto payload = status.GetPayload(url);
  Message message;
  if (!payload || !message.ParseFromString(std::string(*payload))) return std::nullopt;
  return message;
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const auto code = static_cast<grpc::StatusCode>(status.code());
  wire::Status details;
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    if (!absl::StartsWith(url, kTypeUrlPrefix)) return;  // meant for this process
    google::protobuf::Any& any = *details.add_details();
    any.set_type_url(std::string(url));
    any.set_value(std::string(payload));
  });
  const std::string message = Clip(status.message());
  if (details.details().empty()) return grpc::Status(code, message);
  details.set_code(static_cast<int>(code));
  details.set_message(message);
  return grpc::Status(code, message, details.SerializeAsString());
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  wire::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const google::protobuf::Any& any : details.details()) {
      result.SetPayload(any.type_url(), absl::Cord(any.value()));
    }
  }
  return result;
}

absl::Status ResourceExhaustedError(const std::string& message, absl::Duration retry_after) {
  wire::RetryInfo info;
  absl::Duration rest;
  info.mutable_retry_delay()->set_seconds(absl::IDivDuration(retry_after, absl::Seconds(1), &rest));
  info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  absl::Status status = absl::ResourceExhaustedError(message);
  status.SetPayload(kRetryInfoUrl, absl::Cord(info.SerializeAsString()));
  return status;
}

grpc::Status ResourceExhausted(const std::string& message, absl::Duration retry_after) {
  return ToGrpc(ResourceExhaustedError(message, retry_after));
}

absl::Status InvalidField(const std::string& field, const std::string& problem) {
  wire::BadRequest request;
  wire::BadRequest::FieldViolation& violation = *request.add_field_violations();
  violation.set_field(Clip(field));
  violation.set_description(Clip(problem));
  absl::Status status = absl::InvalidArgumentError(absl::StrCat(field, ": ", problem));
  status.SetPayload(kBadRequestUrl, absl::Cord(request.SerializeAsString()));
  return status;
}

std::optional<absl::Duration> RetryAfter(const absl::Status& status) {
  const std::optional<wire::RetryInfo> info = Payload<wire::RetryInfo>(status, kRetryInfoUrl);
  if (!info) return std::nullopt;
  return absl::Seconds(info->retry_delay().seconds()) + absl::Nanoseconds(info->retry_delay().nanos());
}

std::optional<std::string> ViolatedField(const absl::Status& status) {
  const std::optional<wire::BadRequest> request = Payload<wire::BadRequest>(status, kBadRequestUrl);
  if (!request || request->field_violations().empty()) return std::nullopt;
  return request->field_violations(0).field();
}

}  // namespace isotherm::rpc
