#include "common/rpc/main.h"

#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/command_line.h"
#include "common/observe/log.h"
#include "common/rpc/malformed_request.h"
#include "tools/cli/commands.h"

namespace isotherm::cli {
namespace {

std::vector<Command> Commands() {
  std::vector<Command> commands = {
      GenerateCommand(), TokenizeCommand(), ScoreCommand(),  PerplexityCommand(),  ProfileCommand(),
      QuantizeCommand(), InspectCommand(),  DoctorCommand(), HealthcheckCommand(), KeyCommand()};
  for (Command& command : commands) command.program.only_grouped_flags = true;
  return commands;
}

// "isotherm generate" without "isotherm ".
std::string ShortName(const Command& command) {
  return command.program.name.substr(command.program.name.find(' ') + 1);
}

std::string FirstSentence(const std::string& text) {
  const size_t end = text.find(". ");
  return end == std::string::npos ? text : text.substr(0, end + 1);
}

std::string Overview() {
  std::string text =
      "isotherm: talk to an Isotherm server, look into model files, check this machine.\n\n"
      "Usage: isotherm COMMAND [flags] [arguments]\n\nCommands:\n";
  for (const Command& command : Commands()) {
    absl::StrAppend(&text, "  ", ShortName(command), std::string(12 - ShortName(command).size(), ' '),
                    FirstSentence(command.program.summary), "\n");
  }
  absl::StrAppend(&text, "\n'isotherm COMMAND --help' teaches each. Start with:\n",
                  "  make run                                  # a server with the demo model, and a story\n",
                  "  isotherm generate \"Once upon a time\"\n");
  return text;
}

int Run(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  if (name.empty() || name == "help" || name == "--help" || name == "-h") {
    (name.empty() ? std::cerr : std::cout) << Overview();
    return name.empty() ? 2 : 0;
  }
  if (name == "--version" || name == "version") {
    std::cout << "isotherm " << base::Version() << "\n";
    return 0;
  }
  for (const Command& command : Commands()) {
    if (ShortName(command) != name) continue;
    const auto parsed = base::ParseCommandLine(command.program, argc - 1, argv + 1);
    if (!parsed.ok()) return rpc::ExitCode(parsed.status());
    if (!parsed->answer.empty()) {
      std::cout << parsed->answer;
      return 0;
    }
    // Standard output is for results; progress is a log line where there is no terminal.
    if (const absl::Status logging = observe::InitLogging("isotherm", "info", "text"); !logging.ok()) {
      return rpc::ExitCode(logging);
    }
    rpc::RedirectProtobufLog();
    return rpc::ExitCode(command.run(parsed->arguments));
  }
  return rpc::ExitCode(
      base::UsageError(absl::StrCat("unknown command '", name, "'; 'isotherm --help' lists them")));
}

}  // namespace
}  // namespace isotherm::cli

int main(int argc, char** argv) { return isotherm::cli::Run(argc, argv); }
