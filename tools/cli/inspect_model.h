#ifndef ISOTHERM_TOOLS_CLI_INSPECT_MODEL_H_
#define ISOTHERM_TOOLS_CLI_INSPECT_MODEL_H_

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "common/model/model.h"
#include "common/model/profile.h"

// The sections of `isotherm inspect` for files that Isotherm can run.
namespace isotherm::cli {

// Three digits: "914 B", "16.5 KiB", "1.62 MiB", "380 GiB".
std::string FormatBytes(uint64_t bytes);

void PrintHyperparameters(const model::Model& model, std::ostream& out);
void PrintBytesByPurpose(const model::Model& model, std::ostream& out);

// What share of all firings the most used neurons of each layer make: how much a small hot set can cover.
void PrintFirings(const model::Model& model, const std::optional<model::Profile>& profile, std::ostream& out);

// What a worker with this much memory would hold, and how many neurons of each layer would be hot.
// `kv_tokens` as in InspectOptions. ResourceExhausted, naming the least budget that would do, if not even the
// dense parts fit.
absl::Status PrintPlacement(const model::Model& model, const std::optional<model::Profile>& profile,
                            int64_t budget_bytes, int64_t kv_tokens, std::ostream& out);

}  // namespace isotherm::cli

#endif  // ISOTHERM_TOOLS_CLI_INSPECT_MODEL_H_
