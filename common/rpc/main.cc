#include "common/rpc/main.h"

#include <csignal>
#include <cstdio>
#include <exception>
#include <string>

#include "absl/flags/flag.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/observe/log.h"
#include "common/rpc/server.h"

ABSL_FLAG(std::string, log_level, "info", "Least severe lines to log: debug, info, warn or error.");
ABSL_FLAG(std::string, log_format, "text",
          "Form of the log on standard error: text, or json for one object a line.");

namespace isotherm::rpc {
namespace {

absl::Status RunOrAnswer(const base::Program& program, int argc, char** argv,
                         const std::function<absl::Status()>& body) {
  ISOTHERM_ASSIGN_OR_RETURN(const base::ParsedCommandLine command_line,
                            base::ParseCommandLine(program, argc, argv));
  if (!command_line.answer.empty()) {
    std::fputs(command_line.answer.c_str(), stdout);
    return std::fflush(stdout) == 0 ? absl::OkStatus()
                                    : absl::UnavailableError("cannot write to standard output");
  }
  const absl::Status logging =
      observe::InitLogging(program.name, absl::GetFlag(FLAGS_log_level), absl::GetFlag(FLAGS_log_format));
  if (!logging.ok()) return base::UsageError(std::string(logging.message()));
  try {
    return body();
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("exception: ", error.what()));
  }
}

}  // namespace

int RunMain(base::Program program, int argc, char** argv, const std::function<absl::Status()>& body) {
  Server::BlockSignals();
  std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away is an error of the write
  program.groups.push_back({"Logging", {"log_level", "log_format"}});
  return ExitCode(RunOrAnswer(program, argc, argv, body));
}

int ExitCode(const absl::Status& status) {
  if (status.ok()) return 0;
  const bool usage = base::IsUsageError(status);
  std::fprintf(stderr, "%s: %s\n", usage ? "usage error" : "error",
               status.message().empty() ? absl::StatusCodeToString(status.code()).c_str()
                                        : std::string(status.message()).c_str());
  return usage ? 2 : 1;
}

}  // namespace isotherm::rpc
