#include "common/model/sparse_ffn.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"

namespace isotherm::model {
namespace {

constexpr int64_t kMostTokens = std::numeric_limits<int64_t>::max();
constexpr double kMostMagnitude = std::numeric_limits<float>::max();  // finite

absl::StatusOr<Activation> ParseActivation(const MetadataReader& metadata, const char* key) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string name, metadata.String(key));
  constexpr Activation kActivations[] = {Activation::kSilu,    Activation::kGelu,  Activation::kRelu,
                                         Activation::kFatRelu, Activation::kRelu2, Activation::kDRelu};
  for (const Activation activation : kActivations) {
    if (name == ActivationName(activation)) return activation;
  }
  const auto append_name = [](std::string* out, Activation activation) {
    out->append(ActivationName(activation));
  };
  return absl::UnimplementedError(metadata.Message(
      key, absl::StrCat("is '", name, "'; supported: ", absl::StrJoin(kActivations, ", ", append_name))));
}

// Whether the value of `key` is `yes`, where it must be that or `no`.
absl::StatusOr<bool> ParseChoice(const MetadataReader& metadata, const char* key, absl::string_view yes,
                                 absl::string_view no) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string value, metadata.String(key));
  if (value == yes) return true;
  if (value == no) return false;
  return absl::InvalidArgumentError(
      metadata.Message(key, absl::StrCat("is '", value, "' where '", yes, "' or '", no, "' is expected")));
}

// a [rank, hidden] and b [ffn, rank]; the rank is what `a` says, and more than hidden + ffn would be absurd.
absl::Status LoadFactors(const std::string& a, const std::string& b, const Hyperparameters& hyperparameters,
                         TensorFinder& tensors, LowRankPredictor& predictor) {
  const int64_t most_rank = hyperparameters.hidden + hyperparameters.ffn;
  ISOTHERM_ASSIGN_OR_RETURN(predictor.a, tensors.MatrixOfColumns(a, most_rank, hyperparameters.hidden));
  ISOTHERM_ASSIGN_OR_RETURN(predictor.b, tensors.Matrix(b, hyperparameters.ffn, predictor.a.rows));
  return absl::OkStatus();
}

absl::StatusOr<LowRankPredictor> LoadPowerInferPredictor(const MetadataReader& metadata,
                                                         const Hyperparameters& hyperparameters,
                                                         const std::string& prefix, TensorFinder& tensors) {
  LowRankPredictor predictor{.relu_between = true, .reads_residual = true};
  ISOTHERM_ASSIGN_OR_RETURN(predictor.threshold, metadata.FloatOr("powerinfer.sparse_threshold",
                                                                  -kMostMagnitude, kMostMagnitude, 0));
  ISOTHERM_RETURN_IF_ERROR(
      LoadFactors(prefix + "fc1.weight", prefix + "fc2.weight", hyperparameters, tensors, predictor));
  return predictor;
}

absl::StatusOr<LowRankPredictor> LoadOwnPredictor(const MetadataReader& metadata,
                                                  const Hyperparameters& hyperparameters,
                                                  const std::string& prefix, TensorFinder& tensors) {
  LowRankPredictor predictor;
  ISOTHERM_ASSIGN_OR_RETURN(predictor.relu_between,
                            ParseChoice(metadata, "isotherm.predictor.form", "relu", "linear"));
  ISOTHERM_ASSIGN_OR_RETURN(predictor.reads_residual,
                            ParseChoice(metadata, "isotherm.predictor.input", "residual", "ffn_input"));
  ISOTHERM_ASSIGN_OR_RETURN(predictor.threshold, metadata.FloatOr("isotherm.predictor.threshold",
                                                                  -kMostMagnitude, kMostMagnitude, 0));
  ISOTHERM_RETURN_IF_ERROR(
      LoadFactors(prefix + "pred_a.weight", prefix + "pred_b.weight", hyperparameters, tensors, predictor));
  const std::string bias = prefix + "pred_b.bias";
  if (tensors.Has(bias)) {
    ISOTHERM_ASSIGN_OR_RETURN(predictor.bias, tensors.F32Vector(bias, hyperparameters.ffn));
  }
  return predictor;
}

}  // namespace

absl::Status LoadActivation(const MetadataReader& metadata, Hyperparameters& hyperparameters) {
  constexpr char kActivationKey[] = "isotherm.ffn.activation";
  constexpr char kThresholdKey[] = "isotherm.ffn.activation_threshold";
  if (metadata.Has(kActivationKey)) {
    ISOTHERM_ASSIGN_OR_RETURN(hyperparameters.activation, ParseActivation(metadata, kActivationKey));
  } else if (metadata.file().is_powerinfer() && !hyperparameters.sparse()) {
    hyperparameters.activation = Activation::kRelu;
  }
  if (hyperparameters.activation == Activation::kDRelu && !hyperparameters.gated) {
    return absl::InvalidArgumentError(metadata.Message(
        kActivationKey, "is 'drelu', which needs a gated FFN, and this architecture's is not"));
  }
  if (hyperparameters.activation == Activation::kFatRelu) {
    ISOTHERM_ASSIGN_OR_RETURN(hyperparameters.activation_threshold,
                              metadata.Float(kThresholdKey, 0, kMostMagnitude));
  }
  return absl::OkStatus();
}

absl::Status LoadDown(const Hyperparameters& hyperparameters, const std::string& prefix,
                      TensorFinder& tensors, Layer& layer) {
  layer.down_transposed = tensors.Has(prefix + "ffn_down_t.weight");
  const std::string name = prefix + (layer.down_transposed ? "ffn_down_t" : "ffn_down");
  int64_t rows = hyperparameters.hidden, columns = hyperparameters.ffn;
  if (layer.down_transposed) std::swap(rows, columns);
  ISOTHERM_ASSIGN_OR_RETURN(layer.down, tensors.Matrix(name + ".weight", rows, columns));
  ISOTHERM_ASSIGN_OR_RETURN(layer.down_bias, tensors.VectorIfPresent(name + ".bias", hyperparameters.hidden));
  return absl::OkStatus();
}

absl::StatusOr<TensorRef> FindCounts(const std::string& name, const gguf::File& file, int64_t ffn,
                                     TensorFinder& tensors) {
  ISOTHERM_ASSIGN_OR_RETURN(const TensorRef counts, tensors.F32Vector(name, ffn));
  const auto bytes = file.Data(*counts.info);
  for (int64_t j = 0; j < ffn; ++j) {
    float count;
    std::memcpy(&count, bytes.data() + j * sizeof(count), sizeof(count));
    if (count >= 0 && std::isfinite(count)) continue;
    return absl::InvalidArgumentError(tensors.Message(
        name, absl::StrCat("counts ", count, " firings of neuron ", j, "; expected a number from 0")));
  }
  return counts;
}

absl::Status LoadPredictorAndCounts(const MetadataReader& metadata, const Hyperparameters& hyperparameters,
                                    const std::string& prefix, TensorFinder& tensors, Layer& layer) {
  if (tensors.Has(prefix + "pred_a.weight")) {
    ISOTHERM_ASSIGN_OR_RETURN(layer.predictor, LoadOwnPredictor(metadata, hyperparameters, prefix, tensors));
  } else if (tensors.Has(prefix + "fc1.weight")) {
    ISOTHERM_ASSIGN_OR_RETURN(layer.predictor,
                              LoadPowerInferPredictor(metadata, hyperparameters, prefix, tensors));
  }
  const std::string counts = prefix + "ffn_act_counts";
  if (tensors.Has(counts)) {
    ISOTHERM_ASSIGN_OR_RETURN(layer.activation_counts,
                              FindCounts(counts, metadata.file(), hyperparameters.ffn, tensors));
    // Counts mean nothing without the number of tokens they are of.
    ISOTHERM_RETURN_IF_ERROR(metadata.Integer("isotherm.profile.tokens", 1, kMostTokens).status());
  }
  return absl::OkStatus();
}

}  // namespace isotherm::model
