#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "common/base/command_line.h"
#include "tools/cli/commands.h"
#include "tools/cli/inspect.h"

ABSL_FLAG(double, vram_budget, 0, "Also show what a GPU worker with this many GiB would hold. 0: no plan.");
ABSL_FLAG(int64_t, kv_tokens, 0,
          "Tokens of the planned KV cache, all sequences together. 0: one sequence of the trained context.");

ABSL_FLAG(std::string, profile, "",
          "Firing counts, as 'isotherm profile' writes them. Empty: those beside the model or in it.");
ABSL_FLAG(std::string, plot, "", "Also write the coverage curves to this file, as SVG.");

namespace isotherm::cli {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;
constexpr double kMostBudget = 1 << 20;  // GiB
constexpr int64_t kMostKvTokens = int64_t{1} << 26;

absl::Status Run(const std::vector<std::string>& arguments) {
  const double budget = absl::GetFlag(FLAGS_vram_budget);
  const int64_t kv_tokens = absl::GetFlag(FLAGS_kv_tokens);
  if (arguments.size() != 1) return base::UsageError("one FILE is expected");
  if (!(budget >= 0 && budget <= kMostBudget)) {
    return base::UsageError("--vram-budget: a number of GiB is expected");
  }
  if (kv_tokens < 0 || kv_tokens > kMostKvTokens) {
    return base::UsageError("--kv-tokens: a number of tokens is expected");
  }
  InspectOptions options;
  options.path = arguments[0];
  options.kv_tokens = kv_tokens;
  options.profile_path = absl::GetFlag(FLAGS_profile);
  options.plot_path = absl::GetFlag(FLAGS_plot);
  options.plot_style = StandardOutputStyle();
  if (budget > 0) options.vram_budget_bytes = static_cast<int64_t>(budget * kGiB);
  const absl::Status status = Inspect(options, std::cout);
  std::cout << std::flush;
  return status;
}

}  // namespace

Command InspectCommand() {
  base::Program program;
  program.name = "isotherm inspect";
  program.summary =
      "Shows what a model file holds and what would run where. Metadata, tensors, hyperparameters, bytes by "
      "purpose, how unevenly the neurons fire as a table and a plot and, with --vram-budget, which of them "
      "would be hot.";
  program.arguments = "FILE";
  program.examples =
      "isotherm inspect models/tales/tales-q8_0.gguf\n"
      "isotherm inspect model.gguf --vram-budget=8    # what would run where\n"
      "isotherm inspect model.gguf --plot=coverage.svg";
  program.groups = {{"Firings", {"profile", "plot"}}, {"Plan", {"vram_budget", "kv_tokens"}}};
  return {program, Run};
}

}  // namespace isotherm::cli
