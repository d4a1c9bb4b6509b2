#include "common/rpc/call.h"

#include <spdlog/spdlog.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <string>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/observe/metrics.h"
#include "common/rpc/status.h"

namespace isotherm::rpc {
namespace {

std::atomic<int> running_calls{0};

// A client's timer started before the request travelled, so its cancellation comes shortly before the
// deadline as this side knows it.
constexpr std::chrono::milliseconds kDeadlineSlack{50};

bool DeadlinePassed(const grpc::ServerContext* context, std::chrono::milliseconds slack) {
  return context != nullptr && context->deadline() - slack <= std::chrono::system_clock::now();
}

absl::Status RunBody(const char* method, grpc::ServerContext* context,
                     const std::function<absl::Status()>& body) {
  if (DeadlinePassed(context, {})) {
    return absl::DeadlineExceededError("the deadline passed before the call began");
  }
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

}  // namespace

grpc::Status Handle(const char* method, grpc::ServerContext* context,
                    const std::function<absl::Status()>& body) {
  ++running_calls;
  const absl::Cleanup leave = [] { --running_calls; };
  const absl::Time start = base::Clock::Real().Now();
  const absl::Status status = RunBody(method, context, body);

  observe::Registry& registry = observe::Registry::Global();
  registry
      .GetCounter("isotherm_rpc_total", "Calls handled, by outcome.",
                  {{"method", method}, {"code", absl::StatusCodeToString(status.code())}})
      .Add();
  registry
      .GetHistogram("isotherm_rpc_seconds", "Time from the start of a call's handler to its end.",
                    observe::LatencyBuckets(), {{"method", method}})
      .Observe(absl::ToDoubleSeconds(base::Clock::Real().Now() - start));
  return ToGrpc(status);
}

int RunningCalls() { return running_calls; }

}  // namespace isotherm::rpc
