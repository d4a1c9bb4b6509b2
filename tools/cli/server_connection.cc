#include <algorithm>
#include <iostream>
#include <iterator>

#include "absl/flags/flag.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/rpc/client_flags.h"
#include "common/rpc/server.h"
#include "isotherm/v1/model.grpc.pb.h"
#include "tools/cli/commands.h"

ABSL_FLAG(std::string, address, "127.0.0.1:7070", "Server to talk to: host:port or unix:/path.");
ABSL_FLAG(absl::Duration, wait, absl::Seconds(5),
          "How long to wait for the server to answer and for its model to be ready.");
ABSL_FLAG(std::string, api_key_file, "",
          "File with the API key to show to a gateway. A flag with the key itself would show it to everybody "
          "who lists processes.");

namespace isotherm::cli {
namespace {

constexpr absl::Duration kCheckInterval = absl::Milliseconds(50);

}  // namespace

base::FlagGroup ServerFlags() { return WithCredentialFlags({"Server", {"address", "wait"}}); }

base::FlagGroup WithCredentialFlags(base::FlagGroup group) {
  const base::FlagGroup connection = rpc::ConnectionFlags();
  group.flags.push_back("api_key_file");
  group.flags.insert(group.flags.end(), connection.flags.begin(), connection.flags.end());
  group.flags.push_back("insecure");
  return group;
}

absl::StatusOr<rpc::ClientCredentials> CredentialsOfCaller() {
  std::string key;
  if (const std::string path = absl::GetFlag(FLAGS_api_key_file); !path.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(key, base::ReadSmallFile(path));
    absl::StripAsciiWhitespace(&key);
  }
  return rpc::CredentialsFromFlags(key);
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectToServer() {
  const std::string address = absl::GetFlag(FLAGS_address);
  ISOTHERM_RETURN_IF_ERROR(rpc::CheckReachedSafely("address", address));
  return ConnectTo(address, absl::GetFlag(FLAGS_wait));
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectTo(const std::string& address, absl::Duration wait,
                                                         const std::function<absl::Status()>& check) {
  const absl::Time deadline = absl::Now() + wait;
  ISOTHERM_ASSIGN_OR_RETURN(const rpc::ClientCredentials credentials, CredentialsOfCaller());
  std::shared_ptr<grpc::Channel> channel = rpc::MakeChannel(address, credentials);
  while (!channel->WaitForConnected(absl::ToChronoTime(std::min(deadline, absl::Now() + kCheckInterval)))) {
    ISOTHERM_RETURN_IF_ERROR(check());
    if (absl::Now() < deadline) continue;
    return absl::UnavailableError(absl::StrCat("no gateway answers at ", address, " within ",
                                               absl::FormatDuration(wait),
                                               ". Start one (make run shows how) or name it with --address"));
  }
  auto models = v1::ModelService::NewStub(channel);
  while (true) {
    ISOTHERM_RETURN_IF_ERROR(check());
    v1::GetModelResponse response;
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(std::max(deadline, absl::Now() + absl::Seconds(1))));
    ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(models->GetModel(&context, {}, &response)));
    if (response.model().state() == v1::MODEL_STATE_READY) return channel;
    if (absl::Now() >= deadline) {
      return absl::UnavailableError(absl::StrCat("the gateway at ", address, " is not ready within ",
                                                 absl::FormatDuration(wait), ": ",
                                                 response.model().state_cause(), ". --wait waits longer"));
    }
    absl::SleepFor(kCheckInterval);
  }
}

absl::StatusOr<std::string> ReadText(const std::vector<std::string>& arguments) {
  if (arguments.size() > 1) {
    return base::UsageError("more than one text given; put it in quotation marks");
  }
  if (arguments.size() == 1 && arguments.front() != "-") return arguments.front();
  std::string text(std::istreambuf_iterator<char>(std::cin), {});
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

}  // namespace isotherm::cli
