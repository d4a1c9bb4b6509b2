#ifndef ISOTHERM_COMMON_RPC_MAIN_H_
#define ISOTHERM_COMMON_RPC_MAIN_H_

#include <functional>

#include "absl/status/status.h"
#include "common/base/command_line.h"

// What the mains of the servers have in common. One looks like this:
//
//   ABSL_FLAG(std::string, listen, "127.0.0.1:7070", "Address to serve on.");
//
//   int main(int argc, char** argv) {
//     const isotherm::base::Program program = {
//         .name = "cpu_worker",
//         .summary = "Computes the cold neurons.",
//         .examples = "cpu_worker --model tales.gguf --listen unix:/run/isotherm/cpu.sock",
//         .groups = {{"Serving", {"listen"}}}};
//     return isotherm::rpc::RunMain(program, argc, argv, []() -> absl::Status {
//       ISOTHERM_ASSIGN_OR_RETURN(auto worker, isotherm::cpu_worker::Worker::Create(OptionsFromFlags()));
//       return worker->ServeUntilSignal();
//     });
//   }
namespace isotherm::rpc {

// Blocks signals, parses the flags (answers --help and --version), sets logging up from --log-level and
// --log-format, runs the body and returns the exit code. An exception that leaves the body is a runtime
// failure.
int RunMain(base::Program program, int argc, char** argv, const std::function<absl::Status()>& body);

// Exit codes of every binary: 0 drained, 1 runtime failure, 2 usage (base::UsageError). Prints the reason as
// the last line on stderr.
int ExitCode(const absl::Status& status);

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_MAIN_H_
