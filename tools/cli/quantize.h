#ifndef ISOTHERM_TOOLS_CLI_QUANTIZE_H_
#define ISOTHERM_TOOLS_CLI_QUANTIZE_H_

#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "tools/cli/quantize_plan.h"

namespace isotherm::cli {

struct QuantizeOptions {
  std::string in;  // the first shard of a split model stands for all
  std::string out;
  QuantizeRules rules;
  int threads = 1;
};

// Writes the model anew with the types of quantize_plan.h, metadata and magic as they are but for
// general.file_type and general.quantization_version. Needs memory for 256 rows a thread, whatever the
// model's size. Then shows for each tensor what became of it and, where it was rounded, the relative
// root-mean-square error |rounded - read| / |read|.
//
// Errors name the file, and the tensor where there is one: those of gguf::File, gguf::Writer and PlanTensors;
// InvalidArgument for weights that the type cannot hold (NaN, infinite, too large for F16).
absl::Status Quantize(const QuantizeOptions& options, std::ostream& report);

}  // namespace isotherm::cli

#endif  // ISOTHERM_TOOLS_CLI_QUANTIZE_H_
