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
#include "common/exchange/logits_region.h"
#include "isotherm/worker/v1/model_runner.grpc.pb.h"

namespace isotherm::gateway {
namespace {

using testing::HasSubstr;
using worker::v1::StepRequest;
using worker::v1::StepResponse;

constexpr uint32_t kVocabulary = 1237;
constexpr uint32_t kMostLogits = 3;

// Answers steps as it is told.
class ScriptedRunner final : public worker::v1::ModelRunnerService::Service {
 public:
  // False: ends the stream.
  using Script = std::function<bool(grpc::ServerContext*, const StepRequest&, StepResponse*)>;

  // `shm_directory`: where it looks for memory offered for logits; empty: nowhere.
  ScriptedRunner(Script script, std::string shm_directory)
      : script_(std::move(script)), shm_directory_(std::move(shm_directory)) {}

  grpc::Status GetRunner(grpc::ServerContext*, const worker::v1::GetRunnerRequest*,
                         worker::v1::GetRunnerResponse* response) override {
    response->set_instance_id("scripted");
    response->set_vocabulary_size(kVocabulary);
    response->set_max_decode_rows(kMostLogits);
    return grpc::Status::OK;
  }
  grpc::Status Step(grpc::ServerContext* context,
                    grpc::ServerReaderWriter<StepResponse, StepRequest>* stream) override {
    std::unique_ptr<exchange::LogitsRegion> region;
    StepRequest request;
    while (stream->Read(&request)) {
      if (request.has_logits_region() && !shm_directory_.empty()) {
        region = exchange::LogitsRegion::Attach(shm_directory_, request.logits_region()).value();
      }
      StepResponse response;
      if (!script_(context, request, &response)) return grpc::Status(grpc::StatusCode::ABORTED, "had enough");
      if (region != nullptr && response.has_success()) {
        shared_rows += region->Put(request, *response.mutable_success());
      }
      stream->Write(response);
    }
    return grpc::Status::OK;
  }

  std::atomic<int64_t> shared_rows = 0;

 private:
  const Script script_;
  const std::string shm_directory_;
};

class GrpcWorkerClientTest : public testing::Test {
 protected:
  // Both sides look for shared memory where they are told; empty: nowhere.
  void Start(ScriptedRunner::Script script, const std::string& client_directory = "",
             const std::string& runner_directory = "") {
    runner_ = std::make_unique<ScriptedRunner>(std::move(script), runner_directory);
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
    builder.RegisterService(runner_.get());
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    client_ = NewGrpcWorkerClient(address_, {}, client_directory);
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

// Whether logits come through memory or inside messages, and on which side that was decided, is not seen.
struct LogitsPath {
  std::string name, client_directory, runner_directory;
  bool shared;
};

class LogitsContractTest : public GrpcWorkerClientTest, public testing::WithParamInterface<LogitsPath> {};

TEST_P(LogitsContractTest, EveryBitArrivesStepByStepAndStreamByStream) {
  const auto logits = [](uint64_t step, int slice) {
    std::string bytes(kVocabulary * sizeof(float), '\0');
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(step * 31 + slice * 7 + i * i);
    return bytes;
  };
  const std::string& directory = GetParam().client_directory;
  Start(
      [&](grpc::ServerContext*, const StepRequest& request, StepResponse* response) {
        Echo(request, response);
        for (int i = 0; i < request.slices_size(); ++i) {
          if (request.slices(i).output() != worker::v1::STEP_OUTPUT_LAST_LOGITS) continue;
          response->mutable_success()->mutable_outputs(i)->set_logits(logits(request.step_id(), i));
        }
        return request.step_id() != 5;
      },
      directory, GetParam().runner_directory);
  int64_t rows = 0;
  for (uint64_t step = 1; step <= 10; ++step) {
    StepRequest request = TwoSlices();
    request.set_step_id(step);
    request.mutable_slices(1)->set_output(worker::v1::STEP_OUTPUT_LAST_LOGITS);
    if (step % 2 == 0) request.mutable_slices(0)->set_output(worker::v1::STEP_OUTPUT_LAST_LOGITS);
    const auto success = client_->Step(request, absl::Seconds(5), [] { return true; });
    if (step == 5) {  // the runner ends the stream; the next has memory of its own
      EXPECT_EQ(success.status().code(), absl::StatusCode::kUnavailable);
      ASSERT_TRUE(client_->Connect(absl::Seconds(5)).ok());
      continue;
    }
    ASSERT_TRUE(success.ok()) << success.status();
    for (int i = 0; i < 2; ++i) {
      const bool wanted = request.slices(i).output() == worker::v1::STEP_OUTPUT_LAST_LOGITS;
      EXPECT_EQ(success->outputs(i).logits(), wanted ? logits(step, i) : "") << "step " << step;
      rows += wanted;
    }
    EXPECT_FALSE(success->outputs(1).logits_in_region());
  }
  EXPECT_EQ(runner_->shared_rows, GetParam().shared ? rows : 0);
}

INSTANTIATE_TEST_SUITE_P(Transports, LogitsContractTest,
                         testing::Values(LogitsPath{"shm", "/dev/shm", "/dev/shm", true},
                                         LogitsPath{"inlineForTheClient", "", "/dev/shm", false},
                                         LogitsPath{"inlineForTheRunner", "/dev/shm", "", false},
                                         LogitsPath{"inlineForWantOfRoom", "/proc", "/proc", false}),
                         [](const auto& info) { return info.param.name; });

TEST_F(GrpcWorkerClientTest, RowsThatNobodyOfferedEndTheStream) {
  Start(
      [](grpc::ServerContext*, const StepRequest& request, StepResponse* response) {
        Echo(request, response);
        for (auto& output : *response->mutable_success()->mutable_outputs())
          output.set_logits_in_region(true);
        return true;
      },
      "/dev/shm");
  StepRequest request = TwoSlices();
  while (request.slices_size() <= static_cast<int>(kMostLogits)) request.add_slices();
  for (auto& slice : *request.mutable_slices()) slice.set_output(worker::v1::STEP_OUTPUT_LAST_LOGITS);
  const absl::Status status = client_->Step(request, absl::Seconds(5), [] { return true; }).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("row 3 of a region of 3"));
}

}  // namespace
}  // namespace isotherm::gateway
