#ifndef ISOTHERM_COMMON_BASE_COMMAND_LINE_H_
#define ISOTHERM_COMMON_BASE_COMMAND_LINE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Command lines over Abseil flags, with help that teaches and errors that help. Flags are declared with
// ABSL_FLAG and read with absl::GetFlag; on the command line a dash and an underscore in a name are the same,
// and help shows dashes.
namespace isotherm::base {

struct FlagGroup {
  std::string title;               // "Model"
  std::vector<std::string> flags;  // names as in ABSL_FLAG, in the order shown
};

// What a program says about itself.
struct Program {
  std::string name;       // as typed: "isotherm-cpu-worker"
  std::string summary;    // what it does and where it stands; the first sentence says it in short
  std::string arguments;  // after the flags in the usage line: "" or "FILE"
  std::string examples;   // command lines with a comment each, shown indented
  // Flags in no group are shown last, under "Other".
  std::vector<FlagGroup> groups;
  // One command of several in a binary: flags in no group are other commands' and unknown here.
  bool only_grouped_flags = false;
};

struct ParsedCommandLine {
  std::vector<std::string> arguments;  // what is not a flag, in order; everything after "--"
  // Text for standard output in place of a run: the answer to --help or --version. Empty for a run.
  std::string answer;
};

// Sets the flags. Accepts --name=value, --name value, --switch and --noswitch, also with one dash. An unknown
// flag, a value that does not parse or, where program.arguments is empty, a stray argument is a UsageError
// that suggests the nearest flag.
absl::StatusOr<ParsedCommandLine> ParseCommandLine(const Program& program, int argc, const char* const* argv);

std::string HelpText(const Program& program);

// The version of this build: "0.1.0".
std::string Version();

// InvalidArgument that is the fault of who typed the command line: exit code 2 instead of 1. Binaries return
// it too for flag values that parse but make no sense.
absl::Status UsageError(const std::string& message);
bool IsUsageError(const absl::Status& status);

}  // namespace isotherm::base

#endif  // ISOTHERM_COMMON_BASE_COMMAND_LINE_H_
