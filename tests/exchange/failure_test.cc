#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "tests/exchange/harness.h"

extern char** environ;

// A process that dies takes nothing with it: the other side knows at once, and nothing is left behind.
namespace isotherm::exchange {
namespace {

// exchange_test_peer, ready once constructed and killed with SIGKILL.
class Peer {
 public:
  Peer(const std::string& role, const std::string& socket, const std::string& directory,
       Transport transport) {
    int ends[2];
    if (pipe(ends) != 0) return;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    std::string arguments[] = {EXCHANGE_TEST_PEER, role, socket, directory, TransportName(transport)};
    char* argv[6] = {};
    for (int i = 0; i < 5; ++i) argv[i] = arguments[i].data();
    if (posix_spawn(&pid_, argv[0], &actions, nullptr, argv, environ) != 0) pid_ = -1;
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    char line[6] = {};
    ready_ = read(ends[0], line, sizeof(line)) == 6 && std::string(line, 5) == "ready";
    close(ends[0]);
  }
  ~Peer() { Kill(); }

  bool ready() const { return ready_; }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  bool ready_ = false;
};

bool Eventually(absl::Duration timeout, const std::function<bool()>& condition) {
  for (const absl::Time deadline = absl::Now() + timeout; absl::Now() < deadline;) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return condition();
}

class FailureTest : public ::testing::TestWithParam<Transport> {
 protected:
  absl::Status Exchange(Channel* channel, int64_t layer) {
    return RoundTrip(channel, geometry_, RandomRequest(geometry_, {.step = 1, .layer = layer, .rows = 2}, 1));
  }
  // The socket's file is there before anything else and after it.
  std::vector<std::string> Regions() const {
    std::vector<std::string> files = directory_.Files();
    files.erase(std::remove(files.begin(), files.end(), "socket"), files.end());
    return files;
  }

  const Geometry geometry_ = SmallGeometry();
  TempDirectory directory_{"/dev/shm"};
  const std::string socket_ = directory_.path() + "/socket";
  std::unique_ptr<worker::v1::NeuronService::Stub> stub_ = MakeStub(socket_);
  const ClientOptions client_ = ClientFor(geometry_, GetParam(), directory_.path());
};

INSTANTIATE_TEST_SUITE_P(Transports, FailureTest,
                         ::testing::Values(Transport::kSharedMemory, Transport::kInline),
                         [](const auto& info) { return std::string(TransportName(info.param)); });

TEST_P(FailureTest, AWorkerKilledInMidExchangeIsUnavailableAtOnce) {
  auto worker = std::make_unique<Peer>("serve", socket_, directory_.path(), GetParam());
  ASSERT_TRUE(worker->ready());
  auto channel = Connect(stub_.get(), client_);
  ASSERT_TRUE(channel.ok()) << channel.status();
  ASSERT_EQ(Exchange(channel->get(), 0), absl::OkStatus());

  absl::Time killed;
  std::thread killer([&] {
    absl::SleepFor(absl::Milliseconds(50));
    killed = absl::Now();
    worker->Kill();
  });
  const absl::Status error = Exchange(channel->get(), 1);  // never answered
  const absl::Time noticed = absl::Now();
  killer.join();
  EXPECT_EQ(error.code(), absl::StatusCode::kUnavailable) << error;
  EXPECT_LT(noticed - killed, absl::Seconds(1));
  EXPECT_TRUE((*channel)->failed());
  EXPECT_EQ(Exchange(channel->get(), 0), error) << "a failed channel stays failed";
  EXPECT_THAT(Regions(), ::testing::IsEmpty());

  worker = std::make_unique<Peer>("serve", socket_, directory_.path(), GetParam());
  ASSERT_TRUE(worker->ready());
  absl::StatusOr<std::unique_ptr<Channel>> again = absl::UnavailableError("");
  EXPECT_TRUE(Eventually(absl::Seconds(5), [&] { return (again = Connect(stub_.get(), client_)).ok(); }))
      << again.status();
  EXPECT_EQ(Exchange(again->get(), 0), absl::OkStatus());
  EXPECT_EQ(Exchange(channel->get(), 0), error) << "reconnecting brought a dead channel back";
}

TEST_P(FailureTest, AWorkerKilledBetweenTwoAnswersIsUnavailableAtOnce) {
  Peer worker("serve", socket_, directory_.path(), GetParam());
  ASSERT_TRUE(worker.ready());
  auto channel = Connect(stub_.get(), client_);
  ASSERT_TRUE(channel.ok()) << channel.status();
  const auto request = [&](int64_t layer) {
    return RandomRequest(geometry_, {.step = 1, .layer = layer, .rows = 2}, 1);
  };
  ASSERT_EQ(Dispatch(channel->get(), request(0)), absl::OkStatus());
  ASSERT_EQ(Dispatch(channel->get(), request(1)), absl::OkStatus());
  ASSERT_EQ(Collect(channel->get(), geometry_, request(0)), absl::OkStatus());
  worker.Kill();
  const absl::Time killed = absl::Now();
  EXPECT_EQ(Collect(channel->get(), geometry_, request(1)).code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - killed, absl::Seconds(1));
  EXPECT_TRUE((*channel)->failed());
}

TEST_P(FailureTest, AWorkerKilledWhileIdleFailsTheChannel) {
  Peer worker("serve", socket_, directory_.path(), GetParam());
  ASSERT_TRUE(worker.ready());
  auto channel = Connect(stub_.get(), client_);
  ASSERT_TRUE(channel.ok()) << channel.status();
  EXPECT_FALSE((*channel)->failed());
  worker.Kill();
  EXPECT_TRUE(Eventually(absl::Milliseconds(500), [&] { return (*channel)->failed(); }));
  EXPECT_EQ(Exchange(channel->get(), 0).code(), absl::StatusCode::kUnavailable);
}

TEST_P(FailureTest, AKilledClientEndsItsCall) {
  FakeExecutor executor(geometry_);
  TestServer server(socket_, {.shm_directory = directory_.path()}, PolicyFor(geometry_), &executor);
  Peer client("connect", socket_, directory_.path(), GetParam());
  ASSERT_TRUE(client.ready());
  EXPECT_EQ(server.calls_running(), 1);
  EXPECT_THAT(Regions(), ::testing::IsEmpty()) << "the name outlived the mapping";
  client.Kill();
  EXPECT_TRUE(server.TakeResult(absl::Milliseconds(500)).has_value());
  EXPECT_EQ(executor.steps_opened, executor.steps_closed);
}

TEST_P(FailureTest, AClientThatLeavesWhileTheChannelOpensLeavesNothing) {
  FakeExecutor executor(geometry_);
  TestServer server(socket_, {.shm_directory = directory_.path()}, PolicyFor(geometry_), &executor);
  ClientOptions options = client_;
  // The region it is told about is not there.
  TempDirectory elsewhere("/dev/shm");
  options.shm_directory = elsewhere.path();
  const auto channel = Connect(stub_.get(), options);
  if (GetParam() == Transport::kSharedMemory) {
    EXPECT_EQ(channel.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_TRUE(server.TakeResult(absl::Seconds(2)).has_value());
  }
  EXPECT_THAT(Regions(), ::testing::IsEmpty());
}

TEST_P(FailureTest, ShuttingTheServerDownFailsTheChannel) {
  FakeExecutor executor(geometry_);
  auto server = std::make_unique<TestServer>(socket_, ServerOptions{.shm_directory = directory_.path()},
                                             PolicyFor(geometry_), &executor);
  auto channel = Connect(stub_.get(), client_);
  ASSERT_TRUE(channel.ok()) << channel.status();
  const absl::Time start = absl::Now();
  server.reset();
  EXPECT_LT(absl::Now() - start, absl::Seconds(1)) << "the call held the server up";
  EXPECT_TRUE(Eventually(absl::Milliseconds(500), [&] { return (*channel)->failed(); }));
  EXPECT_EQ(Exchange(channel->get(), 0).code(), absl::StatusCode::kUnavailable);
}

TEST_P(FailureTest, ClosingTheChannelEndsTheCallWithOk) {
  FakeExecutor executor(geometry_);
  TestServer server(socket_, {.shm_directory = directory_.path()}, PolicyFor(geometry_), &executor);
  auto channel = Connect(stub_.get(), client_);
  ASSERT_TRUE(channel.ok()) << channel.status();
  channel->reset();
  EXPECT_EQ(server.TakeResult(absl::Seconds(1)), absl::OkStatus());
}

TEST_P(FailureTest, NoWorkerIsUnavailable) {
  EXPECT_EQ(Connect(stub_.get(), client_).status().code(), absl::StatusCode::kUnavailable);
}

TEST(AutoTransport, TakesSharedMemoryOnOneHost) {
  const Geometry geometry = SmallGeometry();
  TempDirectory directory("/dev/shm");
  FakeExecutor executor(geometry);
  TestServer server(directory.path() + "/socket", {.shm_directory = directory.path()}, PolicyFor(geometry),
                    &executor);
  const auto stub = MakeStub(directory.path() + "/socket");
  auto channel = Connect(stub.get(), ClientFor(geometry, Transport::kAuto, directory.path()));
  ASSERT_TRUE(channel.ok()) << channel.status();
  EXPECT_EQ((*channel)->transport(), Transport::kSharedMemory);
}

TEST(AutoTransport, FallsBackToInline) {
  const Geometry geometry = SmallGeometry();
  TempDirectory directory("/dev/shm"), same_device("/dev/shm"), other_device("/tmp");
  FakeExecutor executor(geometry);
  TestServer server(directory.path() + "/socket", {.shm_directory = directory.path()}, PolicyFor(geometry),
                    &executor);
  const auto stub = MakeStub(directory.path() + "/socket");
  // A region that cannot be mapped, a directory of another file system, and no directory at all.
  for (const std::string& path : {same_device.path(), other_device.path(), directory.path() + "/missing"}) {
    auto channel = Connect(stub.get(), ClientFor(geometry, Transport::kAuto, path));
    ASSERT_TRUE(channel.ok()) << channel.status();
    EXPECT_EQ((*channel)->transport(), Transport::kInline);
    EXPECT_EQ(RoundTrip(channel->get(), geometry, RandomRequest(geometry, {.rows = 1}, 1)), absl::OkStatus());
    EXPECT_THAT(directory.Files(), ::testing::ElementsAre("socket"));
  }
  const absl::Status forced =
      Connect(stub.get(), ClientFor(geometry, Transport::kSharedMemory, other_device.path())).status();
  EXPECT_EQ(forced.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(forced.message()), ::testing::HasSubstr("do not share a shared-memory directory"));
}

TEST(AutoTransport, RefusesInlineFramesThatDoNotFitAMessage) {
  const Geometry geometry{.layers = 1, .hidden = 1024, .ffn = 4096, .max_rows = 4000, .gate_values = true};
  TempDirectory directory("/dev/shm");
  FakeExecutor executor(geometry);
  TestServer server(directory.path() + "/socket", {.shm_directory = directory.path()}, PolicyFor(geometry),
                    &executor);
  const auto stub = MakeStub(directory.path() + "/socket");
  const absl::Status error =
      Connect(stub.get(), ClientFor(geometry, Transport::kInline, directory.path())).status();
  EXPECT_EQ(error.code(), absl::StatusCode::kFailedPrecondition);
  // 64 MiB hold 3,196 rows of 4 KiB of x, 512 bytes of masks and 16 KiB of gate values.
  EXPECT_THAT(std::string(error.message()), ::testing::HasSubstr("lower the rows of a step to 3196"));
}

}  // namespace
}  // namespace isotherm::exchange
