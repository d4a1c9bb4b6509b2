#include <google/protobuf/wrappers.pb.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/rpc/client_flags.h"
#include "common/rpc/server.h"
#include "tools/cli/commands.h"

ABSL_DECLARE_FLAG(std::string, address);
ABSL_DECLARE_FLAG(absl::Duration, wait);
ABSL_FLAG(
    std::string, service, "",
    "Service to ask for, by its full name. Empty: the process, which serves when all of its services do.");

namespace isotherm::cli {
namespace {

// grpc.health.v1: HealthCheckRequest { string service = 1 } and HealthCheckResponse { enum status = 1 } have
// the wire form of StringValue and Int32Value, so that its .proto file is not needed.
constexpr char kCheck[] = "/grpc.health.v1.Health/Check";
constexpr int kServing = 1;

absl::Status Run(const std::vector<std::string>&) {
  const std::string address = absl::GetFlag(FLAGS_address);
  google::protobuf::StringValue request;
  request.set_value(absl::GetFlag(FLAGS_service));
  google::protobuf::Int32Value response;
  ISOTHERM_RETURN_IF_ERROR(rpc::CheckReachedSafely("address", address));
  ISOTHERM_ASSIGN_OR_RETURN(const rpc::ClientCredentials credentials, CredentialsOfCaller());
  const std::shared_ptr<grpc::Channel> channel = rpc::MakeChannel(address, credentials);
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::GetFlag(FLAGS_wait)));
  const grpc::internal::RpcMethod method(kCheck, grpc::internal::RpcMethod::NORMAL_RPC);
  const absl::Status answered =
      rpc::FromGrpc(grpc::internal::BlockingUnaryCall(channel.get(), method, &context, request, &response));
  if (absl::IsDeadlineExceeded(answered)) {
    return absl::UnavailableError(absl::StrCat("nothing answers at ", address, " within ",
                                               absl::FormatDuration(absl::GetFlag(FLAGS_wait))));
  }
  if (absl::IsNotFound(answered)) {
    return absl::NotFoundError(absl::StrCat(address, " has no service '", absl::GetFlag(FLAGS_service),
                                            "'; --service takes its full name"));
  }
  ISOTHERM_RETURN_IF_ERROR(answered);
  if (response.value() != kServing) {
    return absl::UnavailableError(
        absl::StrCat(address, " does not serve; its log and its metric isotherm_serving say why"));
  }
  std::cout << "serving\n";
  return absl::OkStatus();
}

}  // namespace

Command HealthcheckCommand() {
  base::Program program;
  program.name = "isotherm healthcheck";
  program.summary =
      "Asks a process whether it serves (grpc.health.v1), for containers and scripts. Any of the three "
      "processes answers, and so does any other gRPC server with that service. Exit code 0 if it serves, "
      "else 1.";
  program.examples =
      "isotherm healthcheck\n"
      "isotherm healthcheck --address=unix:/run/isotherm/cpu.sock --wait=1s\n"
      "isotherm healthcheck --service=isotherm.v1.InferenceService";
  program.groups = {ServerFlags(), {"Health", {"service"}}};
  return {program, Run};
}

}  // namespace isotherm::cli
