#ifndef ISOTHERM_TOOLS_CLI_COMMANDS_H_
#define ISOTHERM_TOOLS_CLI_COMMANDS_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/command_line.h"

namespace isotherm::cli {

// A subcommand: `isotherm NAME [flags] [arguments]`.
struct Command {
  base::Program program;
  absl::Status (*run)(const std::vector<std::string>& arguments);
};

Command GenerateCommand();
Command TokenizeCommand();
Command ScoreCommand();
Command InspectCommand();
Command DoctorCommand();

// Flag names every command that talks to a server has.
base::FlagGroup ServerFlags();
// A channel to --address whose model is ready within --wait. Unavailable says what to start or to wait for.
absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectToServer();

// The single argument, or standard input to its end where there is none or it is "-". A trailing newline of
// standard input is dropped.
absl::StatusOr<std::string> ReadText(const std::vector<std::string>& arguments);

}  // namespace isotherm::cli

#endif  // ISOTHERM_TOOLS_CLI_COMMANDS_H_
