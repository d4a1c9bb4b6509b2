#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/rpc/test_service.h"

namespace isotherm::rpc {
namespace {

using Stream = grpc::ClientReaderWriter<worker::v1::PredictRequest, worker::v1::PredictResponse>;

bool Echo(Stream& stream, const std::string& text) {
  worker::v1::PredictRequest request;
  request.set_input(text);
  worker::v1::PredictResponse response;
  return stream.Write(request) && stream.Read(&response) && response.masks() == text;
}

// A server with one open stream, and a thread that serves until told to stop.
class DrainTest : public testing::Test {
 protected:
  explicit DrainTest(absl::Duration drain_timeout = absl::Seconds(30))
      : server_([&] {
          ServerOptions options;
          options.drain_timeout = drain_timeout;
          return options;
        }()),
        stub_(worker::v1::PredictorService::NewStub(MakeChannel(server_.address()))),
        stream_(stub_->Predict(&context_)) {
    server_.server->SetServing(kPredictorService, true, "");
    EXPECT_TRUE(Echo(*stream_, "before"));
    serving_ = std::thread([this] {
      status_ = server_.server->ServeUntilSignal(
          [this] { cause_at_drain_ = server_.server->cause(kPredictorService); });
      drained_ = true;
    });
  }
  ~DrainTest() override {
    context_.TryCancel();
    if (serving_.joinable()) serving_.join();
  }

  void WaitUntilRefused() {
    while (Call(server_.address(), "new").ok()) absl::SleepFor(absl::Milliseconds(5));
  }

  TestServer server_;
  std::unique_ptr<worker::v1::PredictorService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<Stream> stream_;
  std::thread serving_;
  absl::Status status_ = absl::UnknownError("not returned yet");
  std::string cause_at_drain_;
  std::atomic<bool> drained_ = false;
};

TEST_F(DrainTest, ARunningStreamFinishesAndNewCallsAreRefused) {
  EXPECT_FALSE(server_.server->draining());
  server_.server->Shutdown();
  WaitUntilRefused();
  EXPECT_TRUE(server_.server->draining());
  EXPECT_EQ(Call(server_.address(), "new").code(), absl::StatusCode::kUnavailable);
  grpc::ClientContext context;
  worker::v1::GetPredictorResponse response;
  const grpc::Status refused = stub_->GetPredictor(&context, {}, &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(refused.error_message(), "the server is ending and takes no new calls");
  EXPECT_TRUE(Echo(*stream_, "while draining"));
  EXPECT_FALSE(drained_);

  stream_->WritesDone();
  EXPECT_TRUE(stream_->Finish().ok());
  serving_.join();
  EXPECT_TRUE(status_.ok());
  EXPECT_EQ(cause_at_drain_, "draining");
}

TEST_F(DrainTest, NothingServesAgainOnceTheDrainBegan) {
  server_.server->Shutdown();
  WaitUntilRefused();
  server_.server->SetServing(kPredictorService, true, "");
  EXPECT_EQ(server_.server->cause(kPredictorService), "draining");
}

TEST_F(DrainTest, ToldTwiceItCancelsWhatRuns) {
  server_.server->Shutdown();
  WaitUntilRefused();
  const absl::Time start = absl::Now();
  server_.server->Shutdown();
  serving_.join();
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  EXPECT_FALSE(Echo(*stream_, "too late"));
}

class ShortDrainTest : public DrainTest {
 protected:
  ShortDrainTest() : DrainTest(absl::Milliseconds(300)) {}
};

TEST_F(ShortDrainTest, WhatOutlastsTheTimeOutIsCancelled) {
  const absl::Time start = absl::Now();
  server_.server->Shutdown();
  serving_.join();
  EXPECT_TRUE(status_.ok());
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(300));
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  EXPECT_FALSE(Echo(*stream_, "too late"));
}

}  // namespace
}  // namespace isotherm::rpc
