#ifndef ISOTHERM_TOOLS_CLI_INSPECT_H_
#define ISOTHERM_TOOLS_CLI_INSPECT_H_

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "tools/cli/coverage.h"

namespace isotherm::cli {

struct InspectOptions {
  std::string path;
  // Bytes of GPU memory to plan for; absent: no plan.
  std::optional<int64_t> vram_budget_bytes;
  // Tokens that the planned KV cache holds, all sequences together; 0: one sequence of the trained context.
  int64_t kv_tokens = 0;
  // Firing counts; empty: those beside the model or in it.
  std::string profile_path;
  // File that gets the coverage curves as SVG; empty: none.
  std::string plot_path;
  PlotStyle plot_style = PlotStyle::kAscii;
};

// Writes for people what a GGUF file holds: metadata, tensors by layer (equal layers once), and, where
// Isotherm can run the model, hyperparameters, bytes by purpose, how unevenly its neurons fire, and which of
// them a budget would make hot. A file that is no model Isotherm can run is described as far as it goes, with
// the reason. The error of a file that cannot be read, or of a plan that cannot be made: ResourceExhausted
// names the least budget that would do.
absl::Status Inspect(const InspectOptions& options, std::ostream& out);

}  // namespace isotherm::cli

#endif  // ISOTHERM_TOOLS_CLI_INSPECT_H_
