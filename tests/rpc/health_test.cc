#include <gmock/gmock.h>
#include <google/protobuf/wrappers.pb.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/random_id.h"
#include "tests/rpc/test_service.h"

namespace isotherm::rpc {
namespace {

using google::protobuf::Int32Value;
using google::protobuf::StringValue;
using testing::HasSubstr;

// grpc.health.v1.HealthCheckRequest { string service = 1 } and HealthCheckResponse { enum status = 1 } have
// the wire form of StringValue and Int32Value.
constexpr int kServing = 1;
constexpr int kNotServing = 2;

StringValue Named(const std::string& service) {
  StringValue request;
  request.set_value(service);
  return request;
}

// The status, or minus the gRPC code.
int Check(const std::string& address, const std::string& service) {
  const auto channel = MakeChannel(address);
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check",
                                         grpc::internal::RpcMethod::NORMAL_RPC);
  grpc::ClientContext context;
  Int32Value response;
  const grpc::Status status =
      grpc::internal::BlockingUnaryCall(channel.get(), method, &context, Named(service), &response);
  return status.ok() ? response.value() : -static_cast<int>(status.error_code());
}

int Check(const TestServer& server, const std::string& service) { return Check(server.address(), service); }

std::string Metrics() { return observe::Registry::Global().Render(); }

TEST(HealthTest, ServicesStartAsNotServing) {
  TestServer server;
  EXPECT_EQ(Check(server, kPredictorService), kNotServing);
  EXPECT_EQ(Check(server, ""), kNotServing);
  EXPECT_EQ(server.server->cause(kPredictorService), "starting");
  EXPECT_EQ(Check(server, "no.such.Service"), -static_cast<int>(grpc::StatusCode::NOT_FOUND));
}

// What a connection sends is accounted for by its calls, and these are calls like any other.
TEST(HealthTest, ChecksCountTowardsTheUploadLimit) {
  ServerOptions options;
  options.max_upload_bytes = 64 << 10;
  options.max_message_bytes = 4 << 10;
  TestServer server(options);
  const auto channel = MakeChannel(server.address());
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check",
                                         grpc::internal::RpcMethod::NORMAL_RPC);
  for (int i = 0; i < 100; ++i) {
    grpc::ClientContext context;
    // 1.3 KB, none of which header compression has seen before.
    for (int part = 0; part < 40; ++part) context.AddMetadata("noise", base::RandomId());
    Int32Value response;
    ASSERT_TRUE(
        grpc::internal::BlockingUnaryCall(channel.get(), method, &context, Named(""), &response).ok());
  }
  absl::SleepFor(absl::Milliseconds(200));  // connections are looked at every 50 ms
  EXPECT_EQ(channel->GetState(/*try_to_connect=*/false), GRPC_CHANNEL_READY) << "the connection was closed";
}

TEST(HealthTest, EachServiceHasItsStatusAndTheWholeServesWhenAllDo) {
  TestServer server;
  server.server->SetServing(kPredictorService, true, "");
  EXPECT_EQ(Check(server, kPredictorService), kServing);
  EXPECT_EQ(Check(server, ""), kServing);
  EXPECT_EQ(server.server->cause(""), "");

  server.server->SetServing("another.Service", false, "loading the model");
  EXPECT_EQ(Check(server, kPredictorService), kServing);
  EXPECT_EQ(Check(server, "another.Service"), kNotServing);
  EXPECT_EQ(Check(server, ""), kNotServing);
  EXPECT_EQ(server.server->cause(""), "another.Service: loading the model");
}

TEST(HealthTest, TheMetricShowsThePresentCauseAlone) {
  TestServer server;
  server.server->SetServing(kPredictorService, false, "no CPU worker");
  const std::string before =
      "isotherm_serving{cause=\"no CPU worker\",service=\"" + std::string(kPredictorService) + "\"} 0";
  EXPECT_THAT(Metrics(), HasSubstr(before));
  server.server->SetServing(kPredictorService, true, "");
  EXPECT_THAT(Metrics(), Not(HasSubstr("no CPU worker")));
  EXPECT_THAT(Metrics(),
              HasSubstr("isotherm_serving{cause=\"\",service=\"" + std::string(kPredictorService) + "\"} 1"));
}

TEST(HealthTest, AWatcherHearsOfEveryChange) {
  TestServer server;
  const auto channel = MakeChannel(server.address());
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Watch",
                                         grpc::internal::RpcMethod::SERVER_STREAMING);
  grpc::ClientContext context;
  const std::unique_ptr<grpc::ClientReader<Int32Value>> watch(
      grpc::internal::ClientReaderFactory<Int32Value>::Create(channel.get(), method, &context,
                                                              Named(kPredictorService)));
  Int32Value status;
  ASSERT_TRUE(watch->Read(&status));
  EXPECT_EQ(status.value(), kNotServing);
  server.server->SetServing(kPredictorService, true, "");
  ASSERT_TRUE(watch->Read(&status));
  EXPECT_EQ(status.value(), kServing);
  server.server->SetServing(kPredictorService, false, "lost the CPU worker");
  ASSERT_TRUE(watch->Read(&status));
  EXPECT_EQ(status.value(), kNotServing);
  context.TryCancel();
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(HealthTest, TheHealthListenerAnswersHealthChecksAlone) {
  ServerOptions options;
  options.health_listen = "127.0.0.1:0";
  TestServer server(options);
  const std::string address = absl::StrCat("127.0.0.1:", server.server->health_port());
  EXPECT_EQ(Check(address, ""), kNotServing);
  EXPECT_EQ(Check(address, "live"), kServing);
  server.server->SetServing(kPredictorService, true, "");
  EXPECT_EQ(Check(address, kPredictorService), kServing);
  EXPECT_EQ(Check(address, ""), kServing);
  EXPECT_EQ(Call(address, "anything").code(), absl::StatusCode::kUnimplemented);

  server.server->Shutdown();
  EXPECT_TRUE(server.server->ServeUntilSignal().ok());
  EXPECT_EQ(Check(address, ""), kNotServing);
  EXPECT_EQ(Check(address, "live"), kServing);
}

TEST(HealthTest, AHealthPortInUseIsNamed) {
  TestServer first;
  ServerOptions options;
  options.listen = {"127.0.0.1:0"};
  options.health_listen = first.address();
  TestService service;
  EXPECT_THAT(Server::Start(options, {&service}).status().message(), HasSubstr(first.address()));
}

// A watcher stays for as long as the server lets it; the drain shall not wait for its time-out because of
// one.
TEST(HealthTest, AWatcherIsToldOfTheDrainAndDoesNotHoldItUp) {
  TestServer server;
  server.server->SetServing(kPredictorService, true, "");
  const auto channel = MakeChannel(server.address());
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Watch",
                                         grpc::internal::RpcMethod::SERVER_STREAMING);
  grpc::ClientContext context;
  const std::unique_ptr<grpc::ClientReader<Int32Value>> watch(
      grpc::internal::ClientReaderFactory<Int32Value>::Create(channel.get(), method, &context,
                                                              Named(kPredictorService)));
  Int32Value status;
  ASSERT_TRUE(watch->Read(&status));

  const absl::Time start = absl::Now();
  server.server->Shutdown();
  EXPECT_TRUE(server.server->ServeUntilSignal().ok());
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  ASSERT_TRUE(watch->Read(&status));
  EXPECT_EQ(status.value(), kNotServing);
  EXPECT_FALSE(watch->Read(&status));
}

}  // namespace
}  // namespace isotherm::rpc
