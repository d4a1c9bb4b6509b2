#ifndef ISOTHERM_TOOLS_CLI_QUANTIZE_PLAN_H_
#define ISOTHERM_TOOLS_CLI_QUANTIZE_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/gguf/file.h"
#include "common/kernels/packed_row.h"

// Which tensor of a file gets which type.
namespace isotherm::cli {

struct QuantizeRules {
  gguf::TensorType type = gguf::TensorType::kQ8_0;
  // Rows of ffn_down become neurons: PREFIXffn_down_t [ffn, hidden], as sparse kernels want them.
  bool transpose_down = false;
  // Every matrix gets the type, predictors and output included.
  bool pure = false;
};

// F16, BF16, Q8_0, Q4_0 or Q4_K, in any case; a UsageError lists them.
absl::StatusOr<gguf::TensorType> ParseQuantizeType(absl::string_view name);

// How one tensor is written. Its bytes are copied where neither type nor shape change.
struct TensorPlan {
  const gguf::TensorInfo* source = nullptr;
  std::string name;
  gguf::TensorType type = gguf::TensorType::kF32;
  std::vector<int64_t> dims;  // ggml's order
  bool transposed = false;

  bool copied() const { return !transposed && type == source->type; }
};

// In the file's order. Matrices named ".weight" get the type; all else (norms, biases, firing counts, learned
// positions) stays as it is. Exceptions:
//   - What takes fewer bits a weight than the type already is left alone: it would grow and gain nothing.
//   - Unless pure, with a type of 4 bits: predictors (fc1, fc2, pred_a, pred_b), for a neuron that they miss
//     is lost, and the output (the embedding where the head is tied) get Q8_0.
//   - Rows that are no whole number of blocks of 256 get Q8_0 instead, or F16 if not of 32 either.
// Unimplemented names a matrix of a type that cannot be read; InvalidArgument says that there is no ffn_down
// to transpose.
absl::StatusOr<std::vector<TensorPlan>> PlanTensors(const gguf::File& file, const QuantizeRules& rules);

}  // namespace isotherm::cli

#endif  // ISOTHERM_TOOLS_CLI_QUANTIZE_PLAN_H_
