#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "common/base/command_line.h"
#include "common/base/host.h"
#include "common/base/status_macros.h"
#include "tools/cli/commands.h"
#include "tools/cli/quantize.h"

ABSL_FLAG(bool, transpose_down, false,
          "Write each ffn_down as ffn_down_t, one row for each neuron, as sparse inference wants it.");
ABSL_FLAG(bool, pure, false, "Give every matrix TYPE, predictors and the output matrix included.");
ABSL_FLAG(int, threads, 0, "Threads. 0: one for each core.");

namespace isotherm::cli {
namespace {

constexpr int kMostThreads = 1024;

absl::Status Run(const std::vector<std::string>& arguments) {
  if (arguments.size() != 3) return base::UsageError("IN, OUT and TYPE are expected");
  const int threads = absl::GetFlag(FLAGS_threads);
  if (threads < 0 || threads > kMostThreads)
    return base::UsageError("--threads: a number of threads is expected");
  QuantizeOptions options;
  options.in = arguments[0];
  options.out = arguments[1];
  ISOTHERM_ASSIGN_OR_RETURN(options.rules.type, ParseQuantizeType(arguments[2]));
  options.rules.transpose_down = absl::GetFlag(FLAGS_transpose_down);
  options.rules.pure = absl::GetFlag(FLAGS_pure);
  options.threads = threads > 0 ? threads : base::PhysicalCores();
  const absl::Status status = Quantize(options, std::cout);
  std::cout << std::flush;
  return status;
}

}  // namespace

Command QuantizeCommand() {
  base::Program program;
  program.name = "isotherm quantize";
  program.summary =
      "Writes a model file anew with smaller weights. TYPE is F16, BF16, Q8_0, Q4_0 or Q4_K. Norms, biases "
      "and what is smaller already stay as they are. With 4-bit types predictors and the output matrix get "
      "Q8_0 (see --pure); rows that blocks of 256 do not divide get Q8_0 in place of Q4_K. A PowerInfer file "
      "stays one. Shows the rounding error of every tensor.";
  program.arguments = "IN OUT TYPE";
  program.examples =
      "isotherm quantize model-f16.gguf model-q8_0.gguf Q8_0\n"
      "isotherm quantize model-f16.gguf model-q4_0.gguf Q4_0 --transpose-down    # a ReLU model\n"
      "isotherm quantize model-00001-of-00003.gguf model.gguf Q4_K              # a split one";
  program.groups = {{"Weights", {"transpose_down", "pure"}}, {"Running", {"threads"}}};
  return {program, Run};
}

}  // namespace isotherm::cli
