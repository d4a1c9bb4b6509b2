// What only a whole process shows: signals, exit codes, the last line on stderr, idling.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/file.h"
#include "common/base/random_id.h"
#include "tests/rpc/test_service.h"

namespace isotherm::rpc {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class Process {
 public:
  explicit Process(std::vector<std::string> arguments) {
    std::filesystem::create_directory(directory_);
    arguments.insert(arguments.begin(), ISOTHERM_RPC_TEST_SERVER);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, (directory_ + "/out").c_str(), O_CREAT | O_WRONLY, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, (directory_ + "/err").c_str(), O_CREAT | O_WRONLY, 0600);
    EXPECT_EQ(posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
  }
  ~Process() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    std::filesystem::remove_all(directory_);
  }

  std::string out() const { return base::ReadSmallFile(directory_ + "/out").value_or(""); }
  std::string err() const { return base::ReadSmallFile(directory_ + "/err").value_or(""); }
  std::string LastErrorLine() const {
    const std::vector<std::string> lines = absl::StrSplit(err(), '\n', absl::SkipEmpty());
    return lines.empty() ? "" : lines.back();
  }

  // Waits until it serves and returns the address.
  std::string Address() const {
    for (int i = 0; i < 1000 && !absl::StrContains(out(), "\n"); ++i) absl::SleepFor(absl::Milliseconds(20));
    return absl::StrCat("127.0.0.1:", absl::StripAsciiWhitespace(out()));
  }
  void Signal(int signal) const { kill(pid_, signal); }
  // Exit code, or minus the signal that ended it.
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  // User and system time so far, in clock ticks.
  int64_t CpuTicks() const {
    const std::string stat = base::ReadSmallFile(absl::StrCat("/proc/", pid_, "/stat")).value();
    const std::vector<std::string> fields = absl::StrSplit(stat.substr(stat.rfind(')') + 2), ' ');
    int64_t user = 0, system = 0;
    EXPECT_TRUE(absl::SimpleAtoi(fields[11], &user) && absl::SimpleAtoi(fields[12], &system));
    return user + system;
  }

 private:
  pid_t pid_ = 0;
  const std::string directory_ = testing::TempDir() + "process-" + base::RandomId().substr(0, 8);
};

TEST(ProcessTest, SignalsDrainAndTheExitCodeIsZero) {
  for (const int signal : {SIGTERM, SIGINT}) {
    Process process({});
    EXPECT_TRUE(Call(process.Address(), "hello").ok());
    process.Signal(signal);
    EXPECT_EQ(process.Wait(), 0) << process.err();
    EXPECT_THAT(process.err(), HasSubstr("drained"));
  }
}

TEST(ProcessTest, AListenerThatCannotStartIsAFailedStart) {
  Process first({});
  const std::string address = first.Address();
  Process second({"--listen", address});
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_EQ(second.LastErrorLine(),
            absl::StrCat("error: cannot listen on ", address, ": the port is in use"));
}

TEST(ProcessTest, AnExceptionInTheBodyIsARuntimeFailure) {
  Process process({"--throw-in-body"});
  EXPECT_EQ(process.Wait(), 1);
  EXPECT_THAT(process.LastErrorLine(), HasSubstr("thrown on purpose"));
}

TEST(ProcessTest, UsageErrorsExitWithTwo) {
  Process unknown({"--lisetn=x"});
  EXPECT_EQ(unknown.Wait(), 2);
  EXPECT_EQ(unknown.LastErrorLine(), "usage error: unknown flag --lisetn; did you mean --listen?");
  Process level({"--log-level=loud"});
  EXPECT_EQ(level.Wait(), 2);
  EXPECT_THAT(level.LastErrorLine(), HasSubstr("loud"));
}

TEST(ProcessTest, HelpTeachesTheProgramsOwnFlagsAndNoOthers) {
  Process process({"--help"});
  EXPECT_EQ(process.Wait(), 0);
  EXPECT_THAT(process.out(), HasSubstr("Usage: rpc_test_server [flags]"));
  EXPECT_THAT(process.out(), HasSubstr("Serving:\n  --listen VALUE (default: 127.0.0.1:0)"));
  EXPECT_THAT(process.out(), HasSubstr("Logging:\n  --log-level VALUE (default: info)"));
  EXPECT_THAT(process.out(), Not(HasSubstr("flagfile")));
}

TEST(ProcessTest, JsonLogsAreOneObjectALine) {
  Process process({"--log-format=json"});
  process.Address();
  process.Signal(SIGTERM);
  EXPECT_EQ(process.Wait(), 0);
  for (const std::string& line :
       std::vector<std::string>(absl::StrSplit(process.err(), '\n', absl::SkipEmpty()))) {
    EXPECT_THAT(line, testing::AllOf(StartsWith("{\"time\":\""), testing::EndsWith("}")));
  }
}

TEST(ProcessTest, IdlingTakesLessThanOnePercentOfACore) {
  Process process({});
  EXPECT_TRUE(Call(process.Address(), "warm up").ok());
  const int64_t before = process.CpuTicks();
  constexpr int kSeconds = 5;
  absl::SleepFor(absl::Seconds(kSeconds));
  EXPECT_LE(process.CpuTicks() - before, kSeconds * sysconf(_SC_CLK_TCK) / 100);
}

}  // namespace
}  // namespace isotherm::rpc
