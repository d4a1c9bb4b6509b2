#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/neuron/mask.h"
#include "tests/exchange/harness.h"

// What a caller may rely on, whichever the transport.
namespace isotherm::exchange {
namespace {

using ::testing::HasSubstr;

class ContractTest : public ::testing::TestWithParam<Transport> {
 protected:
  // Serves and connects with one geometry.
  void Start(const Geometry& geometry) { Start(geometry, PolicyFor(geometry)); }
  void Start(const Geometry& geometry, const ServerPolicy& policy) {
    Serve(geometry, policy);
    absl::StatusOr<std::unique_ptr<Channel>> channel = Connect(stub_.get(), client_);
    ASSERT_TRUE(channel.ok()) << channel.status();
    channel_ = std::move(*channel);
    ASSERT_EQ(channel_->transport(), GetParam());
  }
  void Serve(const Geometry& geometry, const ServerPolicy& policy) {
    stub_ = MakeStub(socket_);  // an old one may not have noticed yet that its server is gone
    geometry_ = geometry;
    executor_ = std::make_unique<FakeExecutor>(geometry);
    executor_->hook = hook_;
    server_ = std::make_unique<TestServer>(socket_, server_options_, policy, executor_.get());
    client_ = ClientFor(geometry, GetParam(), directory_.path());
    client_.exchange_timeout = timeout_;
  }
  void Stop() {
    channel_.reset();
    server_.reset();
  }
  absl::Status Exchange(const RequestHeader& header, uint64_t seed = 1) {
    return RoundTrip(channel_.get(), geometry_, RandomRequest(geometry_, header, seed));
  }

  TempDirectory directory_{"/dev/shm"};
  const std::string socket_ = directory_.path() + "/socket";
  ServerOptions server_options_{.shm_directory = directory_.path()};
  FakeExecutor::Hook hook_;
  absl::Duration timeout_ = absl::Seconds(20);
  Geometry geometry_;
  std::unique_ptr<FakeExecutor> executor_;
  std::unique_ptr<TestServer> server_;
  std::unique_ptr<worker::v1::NeuronService::Stub> stub_;
  ClientOptions client_;
  std::unique_ptr<Channel> channel_;
};

INSTANTIATE_TEST_SUITE_P(Transports, ContractTest,
                         ::testing::Values(Transport::kSharedMemory, Transport::kInline),
                         [](const auto& info) { return std::string(TransportName(info.param)); });

TEST_P(ContractTest, CarriesAwkwardShapes) {
  for (const Geometry& geometry :
       {Geometry{1, 1, 1, 1, false}, Geometry{1, 1, 1, 1, true}, Geometry{2, 3, 63, 3, true},
        Geometry{2, 3, 64, 3, true}, Geometry{2, 7, 65, 5, true}, Geometry{3, 17, 127, 2, false},
        Geometry{1, 1023, 1025, 33, true}, Geometry{1, 4096, 11008, 2, false}}) {
    SCOPED_TRACE(absl::StrCat("hidden ", geometry.hidden, " ffn ", geometry.ffn));
    Stop();
    ASSERT_NO_FATAL_FAILURE(Start(geometry));
    uint64_t step = 0;
    for (int64_t rows = 1; rows <= geometry.max_rows; ++rows) {
      for (int64_t layer = 0; layer < geometry.layers; ++layer) {
        const RequestHeader header{.step = ++step, .layer = layer, .rows = rows};
        ASSERT_EQ(Exchange(header, step), absl::OkStatus());
      }
    }
  }
}

TEST_P(ContractTest, CarriesGateValuesAndTheDenseFlag) {
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  for (const bool dense : {false, true}) {
    for (const bool gates : {true, false, true}) {
      EXPECT_EQ(Exchange({.step = 1, .layer = 2, .rows = 4, .dense = dense, .has_gate_values = gates}),
                absl::OkStatus());
    }
  }
}

TEST_P(ContractTest, SaysWhatToExpectWhereMemoryIsShared) {
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  const bool shared = GetParam() == Transport::kSharedMemory;
  channel_->BeginStep(1);
  // Also of a layer that is not asked for then.
  for (int layer = 0; layer < 3; ++layer) {
    const std::vector<uint64_t> mask = {uint64_t{1} << layer, 63};
    channel_->Expect(layer, mask.data());
    if (shared) {
      ASSERT_TRUE(executor_->AwaitExpectations(layer + 1));
    }
    EXPECT_EQ(Exchange({.step = 1, .layer = layer / 2, .rows = 2}), absl::OkStatus());
    const std::vector<FakeExecutor::Expected> expected = executor_->TakeExpected();
    ASSERT_EQ(expected.size(), shared ? 1 : 0);
    if (!shared) continue;
    EXPECT_EQ(expected[0].layer, layer);
    EXPECT_EQ(expected[0].mask, mask);
    EXPECT_TRUE(expected[0].request_came);
  }
  channel_->EndStep();
}

TEST_P(ContractTest, CarriesRowsWithoutNeurons) {
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  Request request = RandomRequest(geometry_, {.rows = 2}, 1);
  std::fill(request.masks.begin(), request.masks.end(), 0);
  EXPECT_EQ(RoundTrip(channel_.get(), geometry_, request), absl::OkStatus());
}

TEST_P(ContractTest, AnswersTwoInFlightInTheirOrder) {
  Geometry geometry = SmallGeometry();
  geometry.bf16 = false;
  ASSERT_NO_FATAL_FAILURE(Start(geometry));
  const auto request = [&](uint64_t number) {
    const auto rows = static_cast<int64_t>(number % 4) + 1;
    return RandomRequest(geometry_, {.step = number, .rows = rows, .has_gate_values = number % 3 == 0},
                         number);
  };
  ASSERT_EQ(Dispatch(channel_.get(), request(0)), absl::OkStatus());
  for (uint64_t number = 1; number < 200; ++number) {
    ASSERT_EQ(Dispatch(channel_.get(), request(number)), absl::OkStatus());
    ASSERT_EQ(Collect(channel_.get(), geometry_, request(number - 1)), absl::OkStatus());
    // Once both answers are there, too.
    if (number % 50 == 0) absl::SleepFor(absl::Milliseconds(5));
  }
  ASSERT_EQ(Collect(channel_.get(), geometry_, request(199)), absl::OkStatus());
  EXPECT_FALSE(channel_->failed());
}

TEST_P(ContractTest, KeepsAnAnswerUntilTheNextBegin) {
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  const Request request = RandomRequest(geometry_, {.rows = 1}, 1);
  const absl::StatusOr<RequestBuffers> buffers = channel_->Begin(request.header);
  ASSERT_TRUE(buffers.ok());
  std::copy(request.x.begin(), request.x.end(), buffers->x);
  std::copy(request.masks.begin(), request.masks.end(), buffers->masks);
  ASSERT_EQ(channel_->Send(0), absl::OkStatus());
  const absl::StatusOr<Channel::Answer> answer = channel_->Await();
  ASSERT_TRUE(answer.ok());
  const std::vector<float> before(answer->y, answer->y + geometry_.hidden);
  channel_->EndStep();
  channel_->BeginStep(2);
  absl::SleepFor(absl::Milliseconds(5));
  EXPECT_EQ(std::memcmp(before.data(), answer->y, before.size() * sizeof(float)), 0);
}

TEST_P(ContractTest, AccountsForTimeAndBytes) {
  hook_ = [this](const ServerRequest& request, float* y) {
    absl::SleepFor(absl::Milliseconds(20));
    return FakeExecutor::Answer(geometry_, request, y);
  };
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  const Request request = RandomRequest(geometry_, {.rows = 2}, 1);
  const absl::StatusOr<RequestBuffers> buffers = channel_->Begin(request.header);
  ASSERT_TRUE(buffers.ok());
  std::copy(request.masks.begin(), request.masks.end(), buffers->masks);
  ASSERT_EQ(channel_->Send(0), absl::OkStatus());
  absl::SleepFor(absl::Milliseconds(60));  // the hot half takes longer
  const absl::StatusOr<Channel::Answer> answer = channel_->Await();
  ASSERT_TRUE(answer.ok());
  EXPECT_GE(answer->latency, absl::Milliseconds(20));
  EXPECT_LT(answer->latency, absl::Milliseconds(55)) << "counted until Await instead of the answer's arrival";
  EXPECT_LT(answer->wait, absl::Milliseconds(20));
  // Two descriptors, x and y of 2 x 5 floats, masks of 2 x 2 words.
  EXPECT_EQ(channel_->bytes_exchanged(), 2 * 64 + 2 * 40 + 32);
}

TEST_P(ContractTest, TellsTheExecutorAboutSteps) {
  hook_ = [this](const ServerRequest& request, float* y) {
    EXPECT_EQ(executor_->steps_opened, static_cast<int>(request.header.step))
        << "computes before the step is open";
    return FakeExecutor::Answer(geometry_, request, y);
  };
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  for (int step = 1; step <= 20; ++step) {
    channel_->BeginStep(static_cast<uint64_t>(step));
    ASSERT_EQ(Exchange({.step = static_cast<uint64_t>(step), .rows = 1}), absl::OkStatus());
    channel_->EndStep();
    const absl::Time deadline = absl::Now() + absl::Seconds(5);
    while (executor_->steps_closed < step && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(1));
    EXPECT_EQ(executor_->steps_opened, step);
    EXPECT_EQ(executor_->steps_closed, step);
  }
}

// Whoever rings from a device wakes nobody, so the executor has to know. Only shared memory can be rung so.
TEST_P(ContractTest, TellsTheExecutorThatADeviceRings) {
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  channel_->RingFromDevice();
  channel_->BeginStep(1);
  ASSERT_EQ(Exchange({.step = 1, .rows = 1}), absl::OkStatus());
  EXPECT_EQ(executor_->steps_opened, 1);
  EXPECT_EQ(executor_->steps_on_device, channel_->shared_memory().has_value() ? 1 : 0);
}

TEST_P(ContractTest, ClosesAStepThatTheClientLeavesOpen) {
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  channel_->BeginStep(1);
  ASSERT_EQ(Exchange({.step = 1, .rows = 1}), absl::OkStatus());
  channel_.reset();
  EXPECT_EQ(server_->TakeResult(absl::Seconds(5)), absl::OkStatus());
  EXPECT_EQ(executor_->steps_closed, 1);
}

TEST_P(ContractTest, PassesOnTheExecutorsError) {
  hook_ = [this](const ServerRequest& request, float* y) -> absl::StatusOr<ServerAnswer> {
    if (request.header.layer == 1) return absl::ResourceExhaustedError("no memory for tiles");
    return FakeExecutor::Answer(geometry_, request, y);
  };
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  ASSERT_EQ(Exchange({.layer = 0, .rows = 1}), absl::OkStatus());
  const absl::Status error = Exchange({.layer = 1, .rows = 1});
  EXPECT_EQ(error.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(error.message()), HasSubstr("no memory for tiles"));
  EXPECT_TRUE(channel_->failed());
  EXPECT_EQ(Exchange({.layer = 0, .rows = 1}), error) << "a dead channel repeats its first error";
}

TEST_P(ContractTest, ABoundedWaitEndsWithDeadlineExceeded) {
  std::mutex stuck;
  stuck.lock();
  hook_ = [&](const ServerRequest& request, float* y) {
    std::lock_guard<std::mutex> lock(stuck);
    return FakeExecutor::Answer(geometry_, request, y);
  };
  timeout_ = absl::Milliseconds(150);
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  const absl::Time start = absl::Now();
  EXPECT_EQ(Exchange({.rows = 1}).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(150));
  EXPECT_LT(absl::Now() - start, absl::Seconds(1));
  EXPECT_TRUE(channel_->failed());
  stuck.unlock();
  EXPECT_TRUE(server_->TakeResult(absl::Seconds(5)).has_value()) << "the call outlives its client";
}

TEST_P(ContractTest, RefusesWhatTheGeometryLeavesOut) {
  for (const RequestHeader& header :
       {RequestHeader{.layer = 3, .rows = 1}, RequestHeader{.layer = -1, .rows = 1}, RequestHeader{.rows = 0},
        RequestHeader{.rows = 5}, RequestHeader{.rows = -1},
        RequestHeader{.rows = 1, .has_gate_values = true}}) {
    Stop();
    Geometry geometry = SmallGeometry();
    geometry.gate_values = false;
    ASSERT_NO_FATAL_FAILURE(Start(geometry));
    EXPECT_EQ(channel_->Begin(header).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(channel_->failed());
  }
}

TEST_P(ContractTest, RefusesCallsOutOfTurn) {
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  EXPECT_EQ(channel_->Await().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(channel_->Send(0).code(), absl::StatusCode::kFailedPrecondition);
  Stop();
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    ASSERT_EQ(Dispatch(channel_.get(), RandomRequest(geometry_, {.rows = 1}, seed)), absl::OkStatus());
  }
  EXPECT_EQ(channel_->Begin({.rows = 1}).status().code(), absl::StatusCode::kFailedPrecondition)
      << "there are two slots";
}

TEST_P(ContractTest, RefusesHotNeurons) {
  ServerPolicy policy = PolicyFor(SmallGeometry());
  policy.hot.assign(3, std::vector<uint64_t>(2, 0));
  neuron::SetBit(policy.hot[1].data(), 69);
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry(), policy));
  Request request = RandomRequest(geometry_, {.layer = 0, .rows = 2}, 1);
  std::fill(request.masks.begin(), request.masks.end(), 0);
  neuron::SetBit(request.masks.data() + 2, 69);
  EXPECT_EQ(RoundTrip(channel_.get(), geometry_, request), absl::OkStatus()) << "cold in layer 0";
  request.header.layer = 1;
  const absl::Status error = RoundTrip(channel_.get(), geometry_, request);
  EXPECT_EQ(error.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(error.message()),
              HasSubstr("the mask of row 1 in layer 1 asks for neurons that are hot"));
}

TEST_P(ContractTest, RefusesMasksPastTheFfnAndGateValuesThatDoNotMatch) {
  struct Case {
    const char* message;
    std::function<void(Request*)> spoil;
  };
  const Case cases[] = {
      {"bits past the last of 70 neurons", [](Request* request) { request->masks[3] |= uint64_t{1} << 6; }},
      {"gate value count is", [](Request* request) { request->gate_values.pop_back(); }},
      {"placement epoch is 8, expected 7", [](Request* request) { request->header.placement_epoch = 8; }},
  };
  for (const Case& c : cases) {
    Stop();
    ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
    Request request = RandomRequest(geometry_, {.rows = 2, .has_gate_values = true}, 1);
    c.spoil(&request);
    const absl::Status error = RoundTrip(channel_.get(), geometry_, request);
    EXPECT_EQ(error.code(), absl::StatusCode::kInvalidArgument) << error;
    EXPECT_THAT(std::string(error.message()), HasSubstr(c.message));
  }
}

TEST_P(ContractTest, RefusesAWorkerThatHasSomethingElse) {
  struct Case {
    const char* message;
    std::function<void(ClientOptions*)> spoil;
  };
  const Case cases[] = {
      {"model digest differs: the GPU worker has other, this CPU worker model",
       [](ClientOptions* options) { options->model_digest = "other"; }},
      {"placement epoch differs: the GPU worker has 8, this CPU worker 7",
       [](ClientOptions* options) { options->placement_epoch = 8; }},
      {"placement digest differs: the GPU worker has other, this CPU worker placement",
       [](ClientOptions* options) { options->placement_digest = "other"; }},
      {"hidden size differs: the GPU worker has 6, this CPU worker 5",
       [](ClientOptions* options) { options->geometry.hidden = 6; }},
      {"5000 rows an exchange, this CPU worker allows 4096",
       [](ClientOptions* options) { options->geometry.max_rows = 5000; }},
  };
  Serve(SmallGeometry(), PolicyFor(SmallGeometry()));
  for (const Case& c : cases) {
    ClientOptions options = client_;
    c.spoil(&options);
    const absl::Status error = Connect(stub_.get(), options).status();
    EXPECT_THAT(std::string(error.message()), HasSubstr(c.message));
    EXPECT_FALSE(error.ok());
  }
  EXPECT_THAT(directory_.Files(), ::testing::ElementsAre("socket")) << "a refused opening left a region";
}

TEST_P(ContractTest, InlineActivationsMayBeBF16) {
  Geometry geometry{.layers = 1, .hidden = 67, .ffn = 70, .max_rows = 3, .gate_values = true, .bf16 = true};
  hook_ = [&](const ServerRequest& request, float* y) -> absl::StatusOr<ServerAnswer> {
    for (int64_t i = 0; i < request.header.rows * geometry.hidden; ++i) y[i] = request.x[i] * 3;
    return ServerAnswer{};
  };
  ASSERT_NO_FATAL_FAILURE(Start(geometry));
  const bool rounds = GetParam() == Transport::kInline;
  // Eight bits, ties to even: 257/128 becomes 256/128, and 3 x 129/128 = 193.5/64 becomes 194/64.
  const float sent[] = {1.0f, 1 + 1.0f / 1024, 1 + 1.0f / 128, -257.0f / 128};
  const float rounded[] = {3.0f, 3.0f, 3.03125f, -6.0f};
  for (int64_t rows = 1; rows <= geometry.max_rows; ++rows) {
    const auto buffers = channel_->Begin({.layer = 0, .rows = rows, .placement_epoch = 7});
    ASSERT_TRUE(buffers.ok()) << buffers.status();
    for (int64_t i = 0; i < rows * geometry.hidden; ++i) buffers->x[i] = sent[i % 4];
    std::fill_n(buffers->masks, rows * neuron::MaskWords(geometry.ffn), 0);
    ASSERT_EQ(channel_->Send(0), absl::OkStatus());
    const auto answer = channel_->Await();
    ASSERT_TRUE(answer.ok()) << answer.status();
    for (int64_t i = 0; i < rows * geometry.hidden; ++i) {
      ASSERT_EQ(answer->y[i], rounds ? rounded[i % 4] : sent[i % 4] * 3) << "value " << i;
    }
  }
  const int64_t masks = 6 * neuron::MaskWords(geometry.ffn) * 8;
  const int64_t activations = 6 * 2 * geometry.hidden * (rounds ? 2 : 4);
  EXPECT_NEAR(channel_->bytes_exchanged(), 3 * 2 * 64 + masks + activations, 3 * 8);  // masks are aligned
}

TEST_P(ContractTest, LogsWhomExchangesAreFor) {
  std::ostringstream log;
  const std::shared_ptr<spdlog::logger> before = spdlog::default_logger();
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  worker::v1::SequenceNote note;
  for (const uint64_t id : {3, 4, 3}) {
    note.set_sequence_id(id);
    note.mutable_begins()->set_request_id(absl::StrCat("order-", id));
    channel_->Note(note);
    EXPECT_EQ(Exchange({.rows = 1}), absl::OkStatus());
  }
  note.clear_begins();
  for (const uint64_t id : {5, 4}) {
    note.set_sequence_id(id);
    channel_->Note(note);
  }
  EXPECT_EQ(Exchange({.rows = 1}), absl::OkStatus());
  Stop();
  spdlog::set_default_logger(before);
  std::vector<std::string> lines;
  for (const absl::string_view line : absl::StrSplit(log.str(), '\n')) {
    if (const size_t at = line.find("sequence "); at != line.npos) lines.emplace_back(line.substr(at));
  }
  EXPECT_THAT(lines, ::testing::ElementsAre("sequence 3 begins, request order-3",
                                            "sequence 4 begins, request order-4", "sequence 4 is over",
                                            "sequence 3 loses its exchange: the GPU worker is gone"));
}

TEST_P(ContractTest, ServesSeveralClientsAtOnce) {
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  std::vector<std::unique_ptr<Channel>> others;
  for (int i = 0; i < 3; ++i) {
    absl::StatusOr<std::unique_ptr<Channel>> channel = Connect(stub_.get(), client_);
    ASSERT_TRUE(channel.ok()) << channel.status();
    others.push_back(std::move(*channel));
  }
  for (uint64_t step = 1; step <= 20; ++step) {
    for (const auto& channel : others) {
      EXPECT_EQ(
          RoundTrip(channel.get(), geometry_, RandomRequest(geometry_, {.step = step, .rows = 3}, step)),
          absl::OkStatus());
    }
  }
}

TEST_P(ContractTest, AnOpenChannelIsIdle) {
  server_options_.spin_us = 50;
  ASSERT_NO_FATAL_FAILURE(Start(SmallGeometry()));
  channel_->BeginStep(1);
  ASSERT_EQ(Exchange({.step = 1, .rows = 1}), absl::OkStatus());
  channel_->EndStep();
  absl::SleepFor(absl::Milliseconds(100));
  const auto cpu_seconds = [] {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  const double before = cpu_seconds();
  absl::SleepFor(absl::Seconds(2));
  EXPECT_LT(cpu_seconds() - before, 0.01 * 2) << "client, server and gRPC's threads together";
}

}  // namespace
}  // namespace isotherm::exchange
