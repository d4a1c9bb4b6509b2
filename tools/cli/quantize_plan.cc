#include "tools/cli/quantize_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/neuron/bundle.h"

namespace isotherm::cli {
namespace {

using gguf::TensorType;

constexpr TensorType kTypes[] = {TensorType::kF16, TensorType::kBF16, TensorType::kQ8_0, TensorType::kQ4_0,
                                 TensorType::kQ4_K};
// What precious tensors get at least.
constexpr TensorType kPreciousType = TensorType::kQ8_0;

double BitsPerWeight(TensorType type) {
  const gguf::BlockShape block = gguf::GetBlockShape(type);
  return 8.0 * static_cast<double>(block.bytes) / static_cast<double>(block.weights);
}

bool IsPredictor(absl::string_view name) {
  return absl::EndsWith(name, ".fc1.weight") || absl::EndsWith(name, ".fc2.weight") ||
         absl::EndsWith(name, ".pred_a.weight") || absl::EndsWith(name, ".pred_b.weight");
}

bool IsDown(absl::string_view name) {
  return absl::EndsWith(name, ".ffn_down.weight") || absl::EndsWith(name, ".ffn_down.bias");
}

class Planner {
 public:
  Planner(const gguf::File& file, const QuantizeRules& rules) : file_(file), rules_(rules) {}

  absl::StatusOr<TensorPlan> Plan(const gguf::TensorInfo& tensor) const {
    TensorPlan plan;
    plan.source = &tensor;
    plan.name = tensor.name;
    plan.type = tensor.type;
    plan.dims.assign(tensor.dims.begin(), tensor.dims.begin() + tensor.rank);
    const bool is_matrix = tensor.rank == 2 && absl::EndsWith(tensor.name, ".weight");
    if (rules_.transpose_down && IsDown(tensor.name)) {
      plan.name = absl::StrReplaceAll(tensor.name, {{".ffn_down.", ".ffn_down_t."}});
      plan.transposed = is_matrix;
      if (is_matrix) std::swap(plan.dims[0], plan.dims[1]);
    }
    if (!is_matrix || tensor.name == "position_embd.weight") return plan;
    const auto readable = neuron::PackedWeightType(tensor);
    if (!readable.ok()) {
      return absl::Status(readable.status().code(),
                          absl::StrCat(file_.path(), ": ", readable.status().message()));
    }
    plan.type = TypeFor(plan);
    return plan;
  }

 private:
  TensorType TypeFor(const TensorPlan& plan) const {
    TensorType type = rules_.type;
    if (!rules_.pure && IsPrecious(plan.name) && BitsPerWeight(type) < BitsPerWeight(kPreciousType)) {
      type = kPreciousType;
    }
    const TensorType source = plan.source->type;
    if (BitsPerWeight(source) < BitsPerWeight(type)) type = source;
    for (const TensorType fallback : {type, TensorType::kQ8_0, TensorType::kF16}) {
      if (plan.dims[0] % gguf::GetBlockShape(fallback).weights == 0) return fallback;
    }
    return TensorType::kF16;
  }

  bool IsPrecious(absl::string_view name) const {
    const absl::string_view head =
        file_.FindTensor("output.weight") != nullptr ? "output.weight" : "token_embd.weight";
    return IsPredictor(name) || name == head;
  }

  const gguf::File& file_;
  const QuantizeRules& rules_;
};

}  // namespace

absl::StatusOr<TensorType> ParseQuantizeType(absl::string_view name) {
  for (const TensorType type : kTypes) {
    if (absl::EqualsIgnoreCase(name, gguf::TensorTypeName(type))) return type;
  }
  const auto append_name = [](std::string* out, TensorType type) { out->append(gguf::TensorTypeName(type)); };
  return base::UsageError(
      absl::StrCat("unknown type '", name, "'; known are ", absl::StrJoin(kTypes, ", ", append_name)));
}

absl::StatusOr<std::vector<TensorPlan>> PlanTensors(const gguf::File& file, const QuantizeRules& rules) {
  const Planner planner(file, rules);
  std::vector<TensorPlan> plans;
  bool has_neuron_rows = false;
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    ISOTHERM_ASSIGN_OR_RETURN(TensorPlan plan, planner.Plan(tensor));
    has_neuron_rows |= absl::EndsWith(plan.name, ".ffn_down_t.weight");
    plans.push_back(std::move(plan));
  }
  if (rules.transpose_down && !has_neuron_rows) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), ": has no tensor '...ffn_down.weight' to transpose; leave --transpose-down out"));
  }
  return plans;
}

}  // namespace isotherm::cli
