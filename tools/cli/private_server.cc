#include "tools/cli/private_server.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "tools/cli/commands.h"

namespace isotherm::cli {
namespace {

// After SIGTERM; nothing is left to drain but the processes' own clean-up.
constexpr absl::Duration kEndPatience = absl::Seconds(10);

// Whole texts are tokenised at once; as much as a client sends.
constexpr int kMostTextMib = rpc::kDefaultMaxMessageBytes >> 20;

absl::StatusOr<std::filesystem::path> BinaryFolder() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::NotFoundError(absl::StrCat("/proc/self/exe: ", error.message()));
  return self.parent_path();
}

absl::StatusOr<std::string> MakeFolder() {
  std::string folder = std::filesystem::temp_directory_path() / "isotherm-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) return absl::ErrnoToStatus(errno, folder);
  return folder;
}

// The child between fork and exec, where only async-signal-safe calls are allowed.
[[noreturn]] void RunChild(const char* binary, char* const* arguments, int log, const sigset_t& mask) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  sigprocmask(SIG_SETMASK, &mask, nullptr);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  execv(binary, arguments);
  _exit(127);
}

absl::string_view LastLine(absl::string_view text) {
  absl::string_view last;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipWhitespace())) last = line;
  return last;
}

// Waits for the child's end, at most so long; false if it goes on.
bool AwaitEnd(pid_t pid, absl::Duration patience) {
  const absl::Time deadline = absl::Now() + patience;
  while (waitpid(pid, nullptr, WNOHANG) == 0) {
    if (absl::Now() >= deadline) return false;
    absl::SleepFor(absl::Milliseconds(10));
  }
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PrivateServer>> PrivateServer::Start(
    const std::string& model_path, const std::vector<std::string>& gpu_worker_flags) {
  std::unique_ptr<PrivateServer> server(new PrivateServer());
  ISOTHERM_ASSIGN_OR_RETURN(server->folder_, MakeFolder());
  server->guard_ = std::make_unique<InterruptGuard>([&started = *server] { started.End(); });
  const std::string model = absl::StrCat("--model=", model_path);
  const std::string worker = absl::StrCat("unix:", server->folder_, "/gpu.sock");
  const std::string gateway = absl::StrCat("unix:", server->folder_, "/gateway.sock");
  std::vector<std::string> flags = {model, absl::StrCat("--listen=", worker), "--metrics-listen="};
  flags.insert(flags.end(), gpu_worker_flags.begin(), gpu_worker_flags.end());
  ISOTHERM_RETURN_IF_ERROR(server->StartProcess("gpu_worker", std::move(flags)));
  ISOTHERM_RETURN_IF_ERROR(server->StartProcess(
      "gateway", {model, absl::StrCat("--listen=", gateway), "--metrics-listen=",
                  absl::StrCat("--worker=", worker), absl::StrCat("--max-message-mib=", kMostTextMib)}));
  ISOTHERM_ASSIGN_OR_RETURN(server->channel_, ConnectTo(gateway, absl::InfiniteDuration(),
                                                        [&server] { return server->CheckAlive(); }));
  return server;
}

absl::Status PrivateServer::StartProcess(const std::string& name, std::vector<std::string> arguments) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::filesystem::path folder, BinaryFolder());
  const std::string binary = folder / name;
  if (access(binary.c_str(), X_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat("there is no ", binary, " to start; use a running server with --server"));
  }
  std::vector<char*> argv = {const_cast<char*>(binary.c_str())};
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  Process process{name, absl::StrCat(folder_, "/", name, ".log"), 0};
  const base::MutexLock lock(&mutex_);
  const int log = open(process.log.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (log < 0) return absl::ErrnoToStatus(errno, process.log);
  process.pid = fork();
  if (process.pid == 0) RunChild(binary.c_str(), argv.data(), log, guard_->mask_before());
  const int fork_error = errno;
  close(log);
  if (process.pid < 0) return absl::ErrnoToStatus(fork_error, absl::StrCat("starting ", name));
  processes_.push_back(std::move(process));
  return absl::OkStatus();
}

absl::Status PrivateServer::CheckAlive() {
  const base::MutexLock lock(&mutex_);
  for (auto process = processes_.begin(); process != processes_.end(); ++process) {
    if (waitpid(process->pid, nullptr, WNOHANG) == 0) continue;
    const auto log = base::ReadSmallFile(process->log);
    const absl::Status status = absl::UnavailableError(
        absl::StrCat(process->name, " ended: ", log.ok() ? LastLine(*log) : "its log cannot be read"));
    processes_.erase(process);
    return status;
  }
  return absl::OkStatus();
}

PrivateServer::~PrivateServer() {
  guard_.reset();
  End();
}

void PrivateServer::End() {
  const base::MutexLock lock(&mutex_);
  // The gateway first, which would otherwise mourn its worker.
  std::reverse(processes_.begin(), processes_.end());
  for (const Process& process : processes_) {
    kill(process.pid, SIGTERM);
    if (AwaitEnd(process.pid, kEndPatience)) continue;
    kill(process.pid, SIGKILL);
    waitpid(process.pid, nullptr, 0);
  }
  processes_.clear();
  std::error_code ignored;
  if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
}

}  // namespace isotherm::cli
