#include "common/rpc/call.h"

#include <spdlog/spdlog.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <string>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/base/status_macros.h"
#include "common/observe/metrics.h"
#include "common/observe/trace.h"
#include "common/rpc/admission.h"
#include "common/rpc/status.h"
#include "common/rpc/upload_budget.h"

namespace isotherm::rpc {
namespace {

std::atomic<int> running_calls{0};
std::atomic<int> running_local_calls{0};

// Of the call whose body this thread runs.
thread_local const Permit* current_permit = nullptr;

// A client's timer started before the request travelled, so its cancellation comes shortly before the
// deadline as this side knows it.
constexpr std::chrono::milliseconds kDeadlineSlack{50};

// `peer` as gRPC names it: "ipv4:127.0.0.1:4711", "ipv6:%5B::1%5D:4711", "unix:".
bool IsOnThisMachine(const std::string& peer) {
  return absl::StartsWith(peer, "unix:") || absl::StartsWith(peer, "ipv4:127.") ||
         absl::StartsWith(peer, "ipv6:%5B::1%5D:");
}

bool DeadlinePassed(const grpc::ServerContext* context, std::chrono::milliseconds slack) {
  return context != nullptr && context->deadline() - slack <= std::chrono::system_clock::now();
}

absl::Status RunBody(const char* method, grpc::ServerContext* context,
                     const std::function<absl::Status()>& body) {
  if (DeadlinePassed(context, {})) {
    return absl::DeadlineExceededError("the deadline passed before the call began");
  }
  ISOTHERM_ASSIGN_OR_RETURN(const Permit permit,
                            context == nullptr ? absl::StatusOr<Permit>(Permit()) : Admit(*context));
  current_permit = &permit;
  const absl::Cleanup leave = [] { current_permit = nullptr; };
  absl::Status status;
  try {
    status = body();
  } catch (const std::exception& error) {
    spdlog::error("{}: exception: {}", method, error.what());
    return absl::InternalError(absl::StrCat("internal error: ", error.what()));
  } catch (...) {
    spdlog::error("{}: exception of an unknown type", method);
    return absl::InternalError("internal error");
  }
  if (absl::IsCancelled(status) && DeadlinePassed(context, kDeadlineSlack)) {
    return absl::DeadlineExceededError(status.message());
  }
  return status;
}

std::string Header(const grpc::ServerContext* context, const char* name) {
  if (context == nullptr) return "";
  const auto header = context->client_metadata().find(name);
  return header == context->client_metadata().end()
             ? ""
             : std::string(header->second.data(), header->second.size());
}

// Calls for a request are worth a line each; what processes ask each other all day is not.
spdlog::level::level_enum LogLevel(const char* method, const std::string& traceparent) {
  const bool for_request = absl::StartsWith(method, "isotherm.v1.") || !traceparent.empty();
  return for_request ? spdlog::level::info : spdlog::level::debug;
}

}  // namespace

grpc::Status Handle(const char* method, grpc::ServerContext* context,
                    const std::function<absl::Status()>& body) {
  const std::string peer = context == nullptr ? "" : context->peer();
  const bool local = IsOnThisMachine(peer);
  ++running_calls;
  running_local_calls += local;
  const absl::Cleanup leave = [local] {
    --running_calls;
    running_local_calls -= local;
  };
  const std::string traceparent = Header(context, kTraceparentHeader);
  const observe::Trace trace = observe::BeginTrace(traceparent, Header(context, kRequestIdHeader));
  const observe::TraceScope scope(trace);
  if (context != nullptr) {
    CountArrivedCall(peer);
    context->AddInitialMetadata(kTraceparentHeader, trace.Traceparent());
    context->AddInitialMetadata(kRequestIdHeader, trace.request_id);
  }
  const absl::Time start = base::Clock::Real().Now();
  const absl::Status status = RunBody(method, context, body);
  const double seconds = absl::ToDoubleSeconds(base::Clock::Real().Now() - start);
  spdlog::log(LogLevel(method, traceparent), "{}: {} in {:.3f} s{}{}", method,
              absl::StatusCodeToString(status.code()), seconds, status.ok() ? "" : ": ",
              std::string(status.message()));

  observe::Registry& registry = observe::Registry::Global();
  registry
      .GetCounter("isotherm_rpc_total", "Calls handled, by outcome.",
                  {{"method", method}, {"code", absl::StatusCodeToString(status.code())}})
      .Add();
  registry
      .GetHistogram("isotherm_rpc_seconds", "Time from the start of a call's handler to its end.",
                    observe::LatencyBuckets(), {{"method", method}})
      .Observe(seconds);
  return ToGrpc(status);
}

void ChargeTokens(int64_t tokens) {
  if (current_permit != nullptr) current_permit->ChargeTokens(tokens);
}

int RunningCalls() { return running_calls; }
int RunningLocalCalls() { return running_local_calls; }

}  // namespace isotherm::rpc
