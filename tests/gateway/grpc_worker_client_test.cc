// The worker client against runners that do not play by the rules.
#include "gateway/workers/grpc_worker_client.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "common/base/random_id.h"
#include "isotherm/worker/v1/model_runner.grpc.pb.h"

namespace isotherm::gateway {
namespace {

using testing::HasSubstr;
using worker::v1::StepRequest;
using worker::v1::StepResponse;

// Answers steps as it is told.
class ScriptedRunner final : public worker::v1::ModelRunnerService::Service {
 public:
  // False: ends the stream.
  using Script = std::function<bool(grpc::ServerContext*, const StepRequest&, StepResponse*)>;

  explicit ScriptedRunner(Script script) : script_(std::move(script)) {}

  grpc::Status GetRunner(grpc::ServerContext*, const worker::v1::GetRunnerRequest*,
                         worker::v1::GetRunnerResponse* response) override {
    response->set_instance_id("scripted");
    return grpc::Status::OK;
  }
  grpc::Status Step(grpc::ServerContext* context,
                    grpc::ServerReaderWriter<StepResponse, StepRequest>* stream) override {
    StepRequest request;
    while (stream->Read(&request)) {
      StepResponse response;
      if (!script_(context, request, &response)) return grpc::Status(grpc::StatusCode::ABORTED, "had enough");
      stream->Write(response);
    }
    return grpc::Status::OK;
  }

 private:
  const Script script_;
};

class GrpcWorkerClientTest : public testing::Test {
 protected:
  void Start(ScriptedRunner::Script script) {
    runner_ = std::make_unique<ScriptedRunner>(std::move(script));
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
    builder.RegisterService(runner_.get());
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    client_ = NewGrpcWorkerClient(address_);
    ASSERT_TRUE(client_->Connect(absl::Seconds(5)).ok());
  }
  ~GrpcWorkerClientTest() override {
    client_.reset();
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    std::filesystem::remove(path_);
  }

  static StepRequest TwoSlices() {
    StepRequest request;
    request.set_step_id(9);
    request.add_slices()->set_sequence_id(1);
    request.add_slices()->set_sequence_id(2);
    return request;
  }
  absl::StatusOr<worker::v1::StepSuccess> Step(absl::Duration timeout) {
    return client_->Step(TwoSlices(), timeout, [] { return true; });
  }
  static void Echo(const StepRequest& request, StepResponse* response) {
    response->set_step_id(request.step_id());
    for (const auto& slice : request.slices()) {
      response->mutable_success()->add_outputs()->set_sequence_id(slice.sequence_id());
    }
  }

  const std::string path_ = testing::TempDir() + "runner-" + base::RandomId().substr(0, 8);
  const std::string address_ = "unix:" + path_;
  std::unique_ptr<ScriptedRunner> runner_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<WorkerClient> client_;
};

TEST_F(GrpcWorkerClientTest, StepsAreAnsweredInOrder) {
  Start([](grpc::ServerContext*, const StepRequest& request, StepResponse* response) {
    Echo(request, response);
    return true;
  });
  for (int i = 0; i < 100; ++i) {
    const auto success = Step(absl::Seconds(5));
    ASSERT_TRUE(success.ok()) << success.status();
    EXPECT_EQ(success->outputs_size(), 2);
  }
}

TEST_F(GrpcWorkerClientTest, NobodyThere) {
  client_ = NewGrpcWorkerClient(address_);
  EXPECT_EQ(Step(absl::Seconds(1)).status().code(), absl::StatusCode::kUnavailable);
  const absl::Time start = absl::Now();
  EXPECT_EQ(client_->Connect(absl::Seconds(5)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - start, absl::Seconds(2)) << "a refused connection is known at once";
}

TEST_F(GrpcWorkerClientTest, AHungStepIsGivenUp) {
  Start([](grpc::ServerContext* context, const StepRequest&, StepResponse*) {
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    return false;
  });
  const absl::Status status = Step(absl::Milliseconds(100)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("in time"));
  EXPECT_EQ(Step(absl::Seconds(1)).status().code(), absl::StatusCode::kUnavailable)
      << "the late answer must not pass for the next step's";
}

TEST_F(GrpcWorkerClientTest, TheCallerOfASlowStepIsAskedWhetherToGoOn) {
  std::atomic<bool> answer = false;
  Start([&](grpc::ServerContext* context, const StepRequest& request, StepResponse* response) {
    while (!answer && !context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    Echo(request, response);
    return true;
  });
  int asked = 0;
  const absl::Time start = absl::Now();
  const auto success = client_->Step(TwoSlices(), absl::Seconds(20), [&] {
    answer = ++asked == 3;
    return true;
  });
  ASSERT_TRUE(success.ok()) << success.status();
  EXPECT_EQ(asked, 3);
  EXPECT_GE(absl::Now() - start, 3 * kPatience);
}

TEST_F(GrpcWorkerClientTest, AStepIsGivenUpWhenItsCallerSaysSo) {
  Start([](grpc::ServerContext* context, const StepRequest& request, StepResponse* response) {
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    return false;
  });
  const absl::Time start = absl::Now();
  const absl::Status status = client_->Step(TwoSlices(), absl::Seconds(20), [] { return false; }).status();
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("gave up"));
  EXPECT_EQ(Step(absl::Seconds(1)).status().code(), absl::StatusCode::kUnavailable)
      << "the late answer must not pass for the next step's";
}

TEST_F(GrpcWorkerClientTest, AStreamThatEndsIsUnavailableUntilConnectedAgain) {
  std::atomic<int> steps = 0;
  Start([&](grpc::ServerContext*, const StepRequest& request, StepResponse* response) {
    Echo(request, response);
    return ++steps != 2;
  });
  EXPECT_TRUE(Step(absl::Seconds(5)).ok());
  const absl::Status status = Step(absl::Seconds(5)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("had enough"));
  EXPECT_EQ(Step(absl::Seconds(5)).status().code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(client_->Connect(absl::Seconds(5)).ok());
  EXPECT_TRUE(Step(absl::Seconds(5)).ok());
}

TEST_F(GrpcWorkerClientTest, FailuresSayWhetherToTryAgain) {
  std::atomic<bool> retryable = true;
  std::atomic<int> code = static_cast<int>(absl::StatusCode::kDataLoss);
  Start([&](grpc::ServerContext*, const StepRequest& request, StepResponse* response) {
    response->set_step_id(request.step_id());
    response->mutable_failure()->set_code(code);
    response->mutable_failure()->set_retryable(retryable);
    return true;
  });
  EXPECT_EQ(Step(absl::Seconds(5)).status().code(), absl::StatusCode::kUnavailable);
  retryable = false;
  EXPECT_EQ(Step(absl::Seconds(5)).status().code(), absl::StatusCode::kDataLoss);
  for (const absl::StatusCode misleading : {absl::StatusCode::kOk, absl::StatusCode::kUnavailable}) {
    code = static_cast<int>(misleading);
    EXPECT_EQ(Step(absl::Seconds(5)).status().code(), absl::StatusCode::kInternal);
  }
}

TEST_F(GrpcWorkerClientTest, AnswersThatDoNotFitAreNotBelieved) {
  const std::vector<std::function<void(StepResponse*)>> ways = {
      [](StepResponse* r) { r->set_step_id(8); },
      [](StepResponse* r) { r->mutable_success()->mutable_outputs()->RemoveLast(); },
      [](StepResponse* r) { r->mutable_success()->mutable_outputs()->SwapElements(0, 1); },
      [](StepResponse* r) { r->clear_result(); },
  };
  std::atomic<size_t> way = 0;
  Start([&](grpc::ServerContext*, const StepRequest& request, StepResponse* response) {
    Echo(request, response);
    ways[way](response);
    return true;
  });
  for (size_t i = 0; i < ways.size(); ++i) {
    way = i;
    ASSERT_TRUE(client_->Connect(absl::Seconds(5)).ok());
    EXPECT_EQ(Step(absl::Seconds(5)).status().code(), absl::StatusCode::kUnavailable) << i;
  }
}

}  // namespace
}  // namespace isotherm::gateway
