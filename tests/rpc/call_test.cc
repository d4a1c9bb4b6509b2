#include "common/rpc/call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/rpc/test_service.h"

namespace isotherm::rpc {
namespace {

using testing::HasSubstr;

std::string Metrics() { return observe::Registry::Global().Render(); }

TEST(CallTest, OutcomesAndTimesAreCountedByMethod) {
  EXPECT_TRUE(Handle("CallTest/Counted", nullptr, [] { return absl::OkStatus(); }).ok());
  EXPECT_TRUE(Handle("CallTest/Counted", nullptr, [] { return absl::OkStatus(); }).ok());
  EXPECT_EQ(Handle("CallTest/Counted", nullptr, [] { return absl::NotFoundError("x"); }).error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(Metrics(), HasSubstr("isotherm_rpc_total{code=\"OK\",method=\"CallTest/Counted\"} 2"));
  EXPECT_THAT(Metrics(), HasSubstr("isotherm_rpc_total{code=\"NOT_FOUND\",method=\"CallTest/Counted\"} 1"));
  EXPECT_THAT(Metrics(), HasSubstr("isotherm_rpc_seconds_count{method=\"CallTest/Counted\"} 3"));
}

TEST(CallTest, AnExceptionIsAnInternalErrorAndTheServerLivesOn) {
  TestServer server;
  const absl::Status status = Call(server.address(), "throw");
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(status.message(), HasSubstr("a bug"));
  EXPECT_EQ(Call(server.address(), "throw-int").code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(Call(server.address(), "hello").ok());
}

TEST(CallTest, DetailsReachTheClient) {
  TestServer server;
  EXPECT_EQ(RetryAfter(Call(server.address(), "busy")), absl::Milliseconds(1500));
  EXPECT_EQ(ViolatedField(Call(server.address(), "field")), "model_digest");
}

TEST(CallTest, ADeadlineStopsTheHandlerAndCountsAsSuch) {
  TestServer server;
  const absl::Time start = absl::Now();
  EXPECT_EQ(Call(server.address(), "until-cancelled", absl::Milliseconds(100)).code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  // The client may hear of it before the handler returns.
  while (RunningCalls() > 0) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_THAT(
      Metrics(),
      HasSubstr("isotherm_rpc_total{code=\"DEADLINE_EXCEEDED\",method=\"PredictorService/GetPredictor\"} 1"));
}

TEST(CallTest, RunningCallsAreThoseInsideHandle) {
  EXPECT_EQ(RunningCalls(), 0);
  Handle("CallTest/Nested", nullptr, [] {
    EXPECT_EQ(RunningCalls(), 1);
    return absl::OkStatus();
  });
  EXPECT_EQ(RunningCalls(), 0);
}

}  // namespace
}  // namespace isotherm::rpc
