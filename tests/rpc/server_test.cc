#include "common/rpc/server.h"

#include <gmock/gmock.h>
#include <grpcpp/support/byte_buffer.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "common/base/random_id.h"
#include "common/base/unique_fd.h"
#include "tests/rpc/test_service.h"

namespace isotherm::rpc {
namespace {

using testing::HasSubstr;

absl::Status StartOn(const std::string& address, const std::string& metrics = "") {
  TestService service;
  ServerOptions options;
  options.listen = {address};
  options.metrics_listen = metrics;
  return Server::Start(options, {&service}).status();
}

TEST(ServerTest, ListensOnSeveralAddressesAtOnce) {
  const std::string socket = testing::TempDir() + "rpc-" + base::RandomId().substr(0, 8);
  ServerOptions options;
  options.listen = {"127.0.0.1:0", "unix:" + socket, "localhost:0"};
  TestServer server(options);
  ASSERT_EQ(server.server->ports().size(), 3u);
  EXPECT_GT(server.server->ports()[0], 0);
  EXPECT_EQ(server.server->ports()[1], 0);
  EXPECT_GT(server.server->ports()[2], 0);
  EXPECT_TRUE(Call(server.address(), "a").ok());
  EXPECT_TRUE(Call("unix:" + socket, "b").ok());
  EXPECT_TRUE(Call("localhost:" + std::to_string(server.server->ports()[2]), "c").ok());
}

TEST(ServerTest, APortTakenIsAnErrorThatNamesTheAddress) {
  TestServer first;
  const absl::Status status = StartOn(first.address());
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(status.message(), HasSubstr(first.address()));
  EXPECT_THAT(status.message(), HasSubstr("in use"));
  EXPECT_TRUE(Call(first.address(), "still here").ok());

  const absl::Status metrics = StartOn("127.0.0.1:0", first.address());
  EXPECT_EQ(metrics.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(metrics.message(), HasSubstr(first.address()));
}

TEST(ServerTest, AddressesThatMakeNoSenseAreErrors) {
  for (const char* address :
       {"", "nonsense", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", ":80", "unix:"}) {
    EXPECT_EQ(StartOn(address).code(), absl::StatusCode::kInvalidArgument) << address;
  }
  EXPECT_FALSE(StartOn("192.0.2.1:0").ok());  // not an address of this machine
}

class SocketPathTest : public testing::Test {
 protected:
  SocketPathTest() { std::filesystem::create_directory(directory_); }
  ~SocketPathTest() override { std::filesystem::remove_all(directory_); }

  // Leaves the file of a socket behind that nobody accepts on, as a killed server does.
  void LeaveStaleSocket() {
    const base::UniqueFd fd(socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
    path_.copy(address.sun_path, sizeof address.sun_path - 1);
    ASSERT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(listen(fd.get(), 1), 0);
  }

  const std::string directory_ = testing::TempDir() + "rpc-" + base::RandomId().substr(0, 8);
  const std::string path_ = directory_ + "/socket";
};

TEST_F(SocketPathTest, AStaleSocketIsReplaced) {
  LeaveStaleSocket();
  ASSERT_TRUE(std::filesystem::is_socket(path_));
  ServerOptions options;
  options.listen = {"unix:" + path_};
  TestServer server(options);
  EXPECT_TRUE(Call("unix:" + path_, "hello").ok());
}

TEST_F(SocketPathTest, ARunningServerIsNotPushedAside) {
  ServerOptions options;
  options.listen = {"unix://" + path_};
  TestServer server(options);
  const absl::Status status = StartOn("unix:" + path_);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(status.message(), HasSubstr(path_));
  EXPECT_THAT(status.message(), HasSubstr("in use by a running server"));
  EXPECT_TRUE(Call("unix:" + path_, "still here").ok());
}

TEST_F(SocketPathTest, TheFileGoesWithTheServer) {
  {
    ServerOptions options;
    options.listen = {"unix:" + path_};
    TestServer server(options);
    EXPECT_TRUE(std::filesystem::exists(path_));
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(SocketPathTest, WhatIsNoSocketIsLeftAlone) {
  std::ofstream(path_) << "precious";
  EXPECT_THAT(StartOn("unix:" + path_).message(), HasSubstr("is no socket"));
  std::string content;
  std::ifstream(path_) >> content;
  EXPECT_EQ(content, "precious");
}

TEST_F(SocketPathTest, AMissingDirectoryAndAPathTooLongAreNamed) {
  const absl::Status missing = StartOn("unix:" + directory_ + "/no/socket");
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.message(), HasSubstr("directory " + directory_ + "/no"));
  const absl::Status too_long = StartOn("unix:" + directory_ + "/" + std::string(120, 'x'));
  EXPECT_EQ(too_long.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(too_long.message(), HasSubstr("107"));
}

// grpc.reflection.v1alpha.ServerReflectionRequest { list_services: "" }; the names stand in the answer as
// they are.
TEST(ServerTest, ReflectionListsTheServices) {
  TestServer server;
  const auto channel = MakeChannel(server.address());
  const grpc::internal::RpcMethod method("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                                         grpc::internal::RpcMethod::BIDI_STREAMING);
  grpc::ClientContext context;
  const std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream(
      grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
          channel.get(), method, &context));
  const grpc::Slice list_services(std::string("\x3A\x00", 2));
  ASSERT_TRUE(stream->Write(grpc::ByteBuffer(&list_services, 1)));
  grpc::ByteBuffer answer;
  ASSERT_TRUE(stream->Read(&answer));
  grpc::Slice slice;
  ASSERT_TRUE(answer.DumpToSingleSlice(&slice).ok());
  const std::string bytes(reinterpret_cast<const char*>(slice.begin()), slice.size());
  EXPECT_THAT(bytes, HasSubstr(kPredictorService));
  EXPECT_THAT(bytes, HasSubstr("grpc.reflection.v1alpha.ServerReflection"));
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST(ServerTest, MessagesAboveTheLimitAreRefused) {
  ServerOptions options;
  options.max_message_bytes = 1000;
  TestServer server(options);
  EXPECT_TRUE(Call(server.address(), std::string(400, 'x')).ok());
  EXPECT_EQ(Call(server.address(), std::string(1100, 'x')).code(), absl::StatusCode::kResourceExhausted);
}

TEST(ServerTest, ACallTooManyIsRefusedInsteadOfWaitingForAThread) {
  ServerOptions options;
  options.max_concurrent_streams = 2;
  TestServer server(options);
  std::vector<std::thread> running;
  for (int i = 0; i < 2; ++i) {
    running.emplace_back([&] { (void)Call(server.address(), "until-cancelled", absl::Seconds(3)); });
  }
  while (RunningCalls() < 2) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(Call(server.address(), "one more", absl::Seconds(2)).code(),
            absl::StatusCode::kResourceExhausted);
  for (std::thread& thread : running) thread.join();
  while (RunningCalls() > 0) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_TRUE(Call(server.address(), "room again").ok());
}

}  // namespace
}  // namespace isotherm::rpc
