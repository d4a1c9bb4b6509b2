#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/host.h"
#include "common/exchange/region.h"
#include "tests/exchange/harness.h"

// A shared-memory directory that is too small, as a container's 64 MB can be: a real tmpfs of 256 KiB.
namespace isotherm::exchange {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kTmpfsBytes = 256 << 10;

// Why this process may not mount, or "". Root and user namespaces both will do.
std::string EnterMountNamespace() {
  const uid_t uid = getuid();
  const gid_t gid = getgid();
  if (unshare(CLONE_NEWNS) != 0) {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return absl::StrCat("unshare: ", strerror(errno));
    std::ofstream("/proc/self/uid_map") << "0 " << uid << " 1";
    std::ofstream("/proc/self/setgroups") << "deny";
    std::ofstream("/proc/self/gid_map") << "0 " << gid << " 1";
  }
  if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
    return absl::StrCat("mount: ", strerror(errno));
  return "";
}

class NoSpaceTest : public ::testing::Test {
 protected:
  // Before any thread: the namespace is the threads' that follow.
  static void SetUpTestSuite() { cause_ = EnterMountNamespace(); }
  void SetUp() override {
    if (!cause_.empty()) GTEST_SKIP() << "cannot mount a tmpfs here: " << cause_;
    const std::string options = absl::StrCat("size=", kTmpfsBytes);
    if (mount("tmpfs", directory_.path().c_str(), "tmpfs", 0, options.c_str()) != 0) {
      GTEST_SKIP() << "cannot mount a tmpfs here: " << strerror(errno);
    }
  }
  void TearDown() override { umount2(directory_.path().c_str(), MNT_DETACH); }

  absl::StatusOr<std::unique_ptr<Channel>> ConnectTo(Transport server_transport, Transport client_transport,
                                                     const std::function<void(Channel*)>& use) {
    FakeExecutor executor(kLarge);
    TestServer server(socket_, {.transport = server_transport, .shm_directory = directory_.path()},
                      PolicyFor(kLarge), &executor);
    const auto stub = MakeStub(socket_);
    auto channel = Connect(stub.get(), ClientFor(kLarge, client_transport, directory_.path()));
    if (!channel.ok()) return channel.status();
    use(channel->get());
    return nullptr;
  }

  static constexpr Geometry kLarge{.layers = 1, .hidden = 4096, .ffn = 11008, .max_rows = 16};  // about 1 MiB
  TempDirectory directory_{"/tmp"}, sockets_{"/tmp"};
  const std::string socket_ = sockets_.path() + "/socket";
  static inline std::string cause_;
};

TEST_F(NoSpaceTest, TheMessageHasTheNumbers) {
  const absl::Status error = Region::Create(directory_.path(), kLarge).status();
  EXPECT_EQ(error.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(error.message()), HasSubstr("0.2 MiB free, the exchange region needs 1.1 MiB"));
  EXPECT_THAT(std::string(error.message()), HasSubstr("shm_size"));
  EXPECT_THAT(std::string(error.message()), HasSubstr("--shm-directory"));
  EXPECT_THAT(directory_.Files(), ::testing::IsEmpty());
}

TEST_F(NoSpaceTest, WhatFitsIsGivenBack) {
  const int64_t free = *base::FreeSpace(directory_.path());
  for (int i = 0; i < 50; ++i) {
    const auto server = Region::Create(directory_.path(), SmallGeometry());
    ASSERT_TRUE(server.ok()) << server.status();
    EXPECT_LT(*base::FreeSpace(directory_.path()), free);
    const auto client =
        Region::Attach(directory_.path(), (*server)->name(), (*server)->bytes(), SmallGeometry());
    ASSERT_TRUE(client.ok()) << client.status();
    (*server)->RemoveName();
  }
  EXPECT_EQ(*base::FreeSpace(directory_.path()), free);
}

TEST_F(NoSpaceTest, AutoFallsBackToInline) {
  const auto result = ConnectTo(Transport::kAuto, Transport::kAuto, [](Channel* channel) {
    EXPECT_EQ(channel->transport(), Transport::kInline);
    EXPECT_EQ(RoundTrip(channel, kLarge, RandomRequest(kLarge, {.rows = 16}, 1)), absl::OkStatus());
  });
  EXPECT_TRUE(result.ok()) << result.status();
}

TEST_F(NoSpaceTest, ForcedSharedMemoryIsRefusedWithTheCause) {
  for (const auto& [server, client] : {std::pair(Transport::kSharedMemory, Transport::kAuto),
                                       std::pair(Transport::kAuto, Transport::kSharedMemory)}) {
    const absl::Status error = ConnectTo(server, client, [](Channel*) {}).status();
    EXPECT_EQ(error.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(error.message()), HasSubstr("0.2 MiB free, the exchange region needs 1.1 MiB"));
    EXPECT_THAT(directory_.Files(), ::testing::IsEmpty());
  }
}

}  // namespace
}  // namespace isotherm::exchange
