#include "common/base/listen.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "common/base/random_id.h"
#include "common/base/unique_fd.h"

namespace isotherm::base {
namespace {

using testing::HasSubstr;

// Binds a loopback port, listens if told to, and stores its number.
UniqueFd BoundSocket(bool listening, int& port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  if (listening) {
    EXPECT_EQ(listen(fd.get(), 1), 0);
  }
  EXPECT_EQ(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  port = ntohs(address.sin_port);
  return fd;
}

TEST(ListenTest, AFreePortCanBeListenedOnAndATakenOneCannot) {
  int port = 0;
  UniqueFd fd = BoundSocket(/*listening=*/true, port);
  for (const std::string host : {"127.0.0.1", "localhost", "0.0.0.0"}) {
    const std::string address = absl::StrCat(host, ":", port);
    const absl::Status status = CheckCanListen(address);
    EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << address;
    EXPECT_THAT(status.message(), HasSubstr(address));
  }
  fd.reset();
  EXPECT_TRUE(CheckCanListen(absl::StrCat("127.0.0.1:", port)).ok());
  EXPECT_TRUE(CheckCanListen("localhost:0").ok());
}

TEST(ListenTest, AddressesThatAreNoneAreInvalid) {
  for (const char* address :
       {"", "80", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:65536", "[::1:0", ":0", "no host:0"}) {
    EXPECT_EQ(CheckCanListen(address).code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_FALSE(CanConnect(address)) << address;
  }
}

TEST(ListenTest, ConnectingTellsWhetherSomebodyAccepts) {
  int listening_port = 0, silent_port = 0;
  const UniqueFd listening = BoundSocket(/*listening=*/true, listening_port);
  const UniqueFd silent = BoundSocket(/*listening=*/false, silent_port);
  EXPECT_TRUE(CanConnect(absl::StrCat("127.0.0.1:", listening_port)));
  EXPECT_FALSE(CanConnect(absl::StrCat("127.0.0.1:", silent_port)));
}

TEST(ListenTest, ASocketPathWithoutADirectoryOrOverAFileIsRefused) {
  EXPECT_TRUE(PrepareSocketPath(testing::TempDir() + RandomId()).ok());
  EXPECT_EQ(PrepareSocketPath("/proc/no/socket").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(PrepareSocketPath("/dev/null").code(), absl::StatusCode::kAlreadyExists);
}

TEST(ListenTest, AUnixSocketHasItsPermissionsWhateverTheUmask) {
  const mode_t umask_before = umask(0777);
  for (const mode_t mode : {0600, 0660, 0666}) {
    const std::string path = testing::TempDir() + RandomId();
    EXPECT_TRUE(ListenUnix(path, mode).ok());
    struct stat status {};
    EXPECT_EQ(stat(path.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, mode);
    unlink(path.c_str());
  }
  umask(umask_before);
}

TEST(ListenTest, AllAddressesOfANameShareOnePort) {
  const absl::StatusOr<ListeningSockets> listening = ListenTcp("localhost:0");
  ASSERT_TRUE(listening.ok()) << listening.status();
  EXPECT_GT(listening->port, 0);
  EXPECT_TRUE(CanConnect(absl::StrCat("localhost:", listening->port)));
  EXPECT_FALSE(ListenTcp(absl::StrCat("localhost:", listening->port)).ok());
}

TEST(ListenTest, AnAddressHasItsForm) {
  for (const char* address : {"127.0.0.1:0", "[::1]:80", "no.such.host:65535", "unix:/tmp/socket"}) {
    EXPECT_TRUE(CheckAddress(address).ok()) << address;
  }
  for (const std::string& address :
       {std::string(), std::string("host"), std::string("host:"), std::string("host:65536"),
        std::string(":80"), std::string("unix:"), "unix:/" + std::string(200, 'x')}) {
    EXPECT_EQ(CheckAddress(address).code(), absl::StatusCode::kInvalidArgument) << address;
  }
}

TEST(ListenTest, OnlyLoopbackIsLoopback) {
  for (const char* address : {"127.0.0.1:1", "127.8.9.10:0", "localhost:80", "[::1]:80"}) {
    EXPECT_TRUE(IsLoopback(address)) << address;
  }
  for (const char* address : {"0.0.0.0:1", "[::]:1", "192.0.2.1:1", "128.0.0.1:1", "no host:1", "nonsense"}) {
    EXPECT_FALSE(IsLoopback(address)) << address;
  }
}

}  // namespace
}  // namespace isotherm::base
