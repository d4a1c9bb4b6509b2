#include "common/rpc/call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/listen.h"
#include "common/base/random_id.h"
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

TEST(CallTest, CallersOnThisMachineAreKnownAsSuch) {
  const std::string socket = "unix:" + testing::TempDir() + "call-" + base::RandomId().substr(0, 8);
  std::vector<std::string> addresses = {"127.0.0.1:0", socket};
  if (base::ListenTcp("[::1]:0").ok()) addresses.push_back("[::1]:0");
  for (const std::string& address : addresses) {
    ServerOptions options;
    options.listen = {address};
    TestServer server(options);
    const int port = server.server->ports().front();
    const auto stub = worker::v1::PredictorService::NewStub(
        MakeChannel(port == 0 ? socket : absl::StrCat(address.substr(0, address.rfind(':')), ":", port)));
    grpc::ClientContext context;
    const auto stream = stub->Predict(&context);
    worker::v1::PredictResponse response;
    ASSERT_TRUE(stream->Write({}) && stream->Read(&response));
    EXPECT_EQ(RunningLocalCalls(), 1) << address;
    stream->WritesDone();
    EXPECT_TRUE(stream->Finish().ok());
    EXPECT_EQ(RunningLocalCalls(), 0) << address;
  }
}

}  // namespace
}  // namespace isotherm::rpc
