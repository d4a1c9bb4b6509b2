#include "tools/cli/inspect_model.h"

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <numeric>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "common/base/status_macros.h"
#include "common/kernels/sketch.h"
#include "common/neuron/bundle.h"
#include "common/neuron/placement.h"
#include "tools/cli/coverage.h"

namespace isotherm::cli {
namespace {

constexpr int64_t kHalfBytes = 2;  // of an F16 entry of the KV cache

// The planner weighs layers by these; only their ratio matters to which neurons become hot. Dual-channel DDR4
// gives about 20 GB/s; an exchange between two processes of one host takes some 30 us.
constexpr double kAssumedBandwidth = 20e9;
constexpr double kAssumedExchangeSeconds = 30e-6;

int64_t SumBytes(std::initializer_list<model::TensorRef> tensors) {
  int64_t bytes = 0;
  for (const model::TensorRef& tensor : tensors) {
    if (!tensor.present()) continue;
    bytes += static_cast<int64_t>(tensor.info->bytes) / tensor.info->dims[1] * tensor.rows;
  }
  return bytes;
}

int64_t SumBytes(std::initializer_list<model::Affine> pairs) {
  int64_t bytes = 0;
  for (const model::Affine& pair : pairs) bytes += SumBytes({pair.weight, pair.bias});
  return bytes;
}

// Bytes in the file.
struct PurposeBytes {
  int64_t attention = 0, ffn = 0, predictor = 0, norms = 0, counts = 0;
  int64_t embedding = 0, head = 0;  // a tied head has none

  int64_t total() const { return attention + ffn + predictor + norms + counts + embedding + head; }
};

bool IsTied(const model::Model& model) { return model.output().info == model.token_embedding().info; }

PurposeBytes SumByPurpose(const model::Model& model) {
  PurposeBytes bytes;
  for (const model::Layer& layer : model.layers()) {
    bytes.attention += SumBytes({layer.q, layer.k, layer.v, layer.attention_output});
    bytes.ffn += SumBytes({layer.gate, layer.up, layer.up_bias, layer.down, layer.down_bias});
    bytes.norms += SumBytes({layer.attention_norm});
    const bool shared_norm = layer.ffn_norm.weight.info == layer.attention_norm.weight.info;
    if (!shared_norm) bytes.norms += SumBytes({layer.ffn_norm});
    bytes.counts += SumBytes({layer.activation_counts});
    if (layer.predictor) {
      bytes.predictor += SumBytes({layer.predictor->a, layer.predictor->b, layer.predictor->bias});
    }
  }
  bytes.norms += SumBytes({model.output_norm()});
  bytes.embedding = SumBytes({model.token_embedding(), model.position_embedding()});
  if (!IsTied(model)) bytes.head = SumBytes({model.output()});
  return bytes;
}

std::string DescribeActivation(const model::Hyperparameters& h) {
  const std::string name = model::ActivationName(h.activation);
  if (!h.sparse()) return absl::StrCat(name, ", dense: every neuron is computed");
  if (h.activation == model::Activation::kFatRelu) {
    return absl::StrCat(name, " above ", h.activation_threshold, ", sparse");
  }
  return absl::StrCat(name, ", sparse");
}

std::string DescribePositions(const model::Model& model) {
  const model::Hyperparameters& h = model.hyperparameters();
  if (h.rope_dims == 0) return "learned";
  std::string text = absl::StrCat("rotary, ", h.rope_dims, " dimensions, base ", h.rope_base);
  if (h.rope_scaling == model::RopeScaling::kLinear) {
    absl::StrAppend(&text, ", positions divided by ", h.rope_scale);
  }
  if (model.rope_factors().present()) absl::StrAppend(&text, ", each frequency with a factor of its own");
  return text;
}

std::string DescribePredictor(const model::Model& model) {
  const auto& predictor = model.layers().front().predictor;
  if (!predictor) return "none in the file";
  return absl::StrFormat("rank %d, %s, reads the %s, threshold %g", predictor->a.rows,
                         predictor->relu_between ? "with a ReLU between" : "linear",
                         predictor->reads_residual ? "residual" : "FFN input", predictor->threshold);
}

// What gpu_worker predicts with if nobody says otherwise.
struct DefaultPredictor {
  const char* name;
  int64_t bytes;
};

DefaultPredictor PredictorOf(const model::Model& model) {
  const model::Hyperparameters& h = model.hyperparameters();
  if (!h.sparse()) return {"all", 0};
  const std::vector<model::Layer>& layers = model.layers();
  if (std::all_of(layers.begin(), layers.end(),
                  [](const auto& layer) { return layer.predictor.has_value(); })) {
    return {"lowrank", SumByPurpose(model).predictor};
  }
  return {"sketch", h.layers * h.ffn * kernels::SketchRowBytes(h.hidden)};
}

int64_t KvBytes(const model::Hyperparameters& h, int64_t tokens) {
  return 2 * h.layers * tokens * h.kv_heads * h.head_dim * kHalfBytes;
}

absl::StatusOr<neuron::PlanInput> MakePlanInput(const model::Model& model,
                                                const std::optional<model::Profile>& profile,
                                                int64_t hot_budget_bytes) {
  neuron::PlanInput input;
  input.layers = model.hyperparameters().layers;
  input.ffn = model.hyperparameters().ffn;
  input.hot_budget_bytes = hot_budget_bytes;
  for (int64_t layer = 0; layer < input.layers; ++layer) {
    ISOTHERM_ASSIGN_OR_RETURN(const neuron::BundleLayout layout, neuron::MakeBundleLayout(model, layer));
    input.neuron_bytes.push_back(layout.bundle_bytes);
  }
  if (profile.has_value()) {
    input.profile_tokens = profile->tokens;
    input.counts = profile->counts;
  }
  input.cold_time.seconds_per_neuron = static_cast<double>(input.neuron_bytes.front()) / kAssumedBandwidth;
  input.exchange_seconds = kAssumedExchangeSeconds;
  return input;
}

void PrintPlan(const model::Model& model, const neuron::Plan& plan, bool profiled, std::ostream& out) {
  const int64_t ffn = model.hyperparameters().ffn;
  const int64_t hot = plan.placement.HotCount();
  const int64_t all = ffn * model.hyperparameters().layers;
  out << absl::StreamFormat("  %-22s %12s   %d of %d (%.1f %%)\n", "hot neurons", FormatBytes(plan.hot_bytes),
                            hot, all, 100.0 * hot / all);
  out << absl::StreamFormat("\n  %5s %10s %10s   %s\n", "layer", "hot (GPU)", "cold (CPU)",
                            profiled ? "firings that are hot" : "hot share (no profile)");
  for (int64_t layer = 0; layer < plan.placement.layers(); ++layer) {
    const int64_t hot_here = plan.placement.HotCount(layer);
    out << absl::StreamFormat("  %5d %10d %10d   %.1f %%\n", layer, hot_here, ffn - hot_here,
                              100 * plan.coverage[layer]);
  }
}

}  // namespace

std::string FormatBytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
  return absl::StrFormat("%.*f %s", value < 10 ? 2 : value < 100 ? 1 : 0, value, kUnits[unit]);
}

void PrintHyperparameters(const model::Model& model, std::ostream& out) {
  const model::Hyperparameters& h = model.hyperparameters();
  const auto line = [&out](const char* name, const std::string& value) {
    out << absl::StreamFormat("  %-18s %s\n", name, value);
  };
  out << "\nModel\n";
  line("architecture", h.architecture);
  if (!h.name.empty()) line("name", absl::Utf8SafeCHexEscape(h.name));
  line("layers", absl::StrCat(h.layers));
  line("hidden size", absl::StrCat(h.hidden));
  line("FFN", absl::StrCat(h.ffn, " neurons a layer, ", h.gated ? "" : "ungated, ", DescribeActivation(h)));
  line("attention",
       absl::StrCat(h.heads, " heads of ", h.head_dim, ", ", h.kv_heads, " for keys and values"));
  line("positions", DescribePositions(model));
  line("vocabulary", absl::StrCat(h.vocabulary, " tokens"));
  line("trained context", absl::StrCat(h.trained_context, " tokens"));
  line("predictor", DescribePredictor(model));
}

void PrintBytesByPurpose(const model::Model& model, std::ostream& out) {
  const PurposeBytes bytes = SumByPurpose(model);
  const auto line = [&](const char* name, int64_t part, const char* note = "") {
    out << absl::StreamFormat("  %-18s %12s %6.1f %%%s\n", name, FormatBytes(part),
                              100.0 * part / bytes.total(), note);
  };
  out << "\nBytes by purpose\n";
  line("attention", bytes.attention);
  line("FFN", bytes.ffn);
  line("embedding", bytes.embedding);
  line("head", bytes.head, IsTied(model) ? "   (tied to the embedding)" : "");
  line("predictor", bytes.predictor);
  line("norms", bytes.norms);
  line("firing counts", bytes.counts);
}

void PrintFirings(const model::Model& model, const std::optional<model::Profile>& profile,
                  std::ostream& out) {
  const model::Hyperparameters& h = model.hyperparameters();
  if (!h.sparse()) return;
  if (!profile.has_value()) {
    out << "\nThe file has no firing counts; without them the first neurons of each layer become hot. "
           "'isotherm profile'\ncollects them.\n";
    return;
  }
  out << absl::StreamFormat(
      "\nFirings in %d tokens, from %s, and the share that the most used neurons make\n", profile->tokens,
      absl::Utf8SafeCHexEscape(profile->source));
  out << absl::StreamFormat("  %5s %8s %9s %9s %9s %9s\n", "layer", "active", "top 10 %", "top 20 %",
                            "top 30 %", "top 50 %");
  for (int64_t layer = 0; layer < h.layers; ++layer) {
    const std::vector<double>& counts = profile->counts[layer];
    const double firings = std::accumulate(counts.begin(), counts.end(), 0.0);
    const std::vector<double> covered = CoverageCurve(absl::MakeConstSpan(&counts, 1));
    out << absl::StreamFormat("  %5d %6.1f %% %7.1f %% %7.1f %% %7.1f %% %7.1f %%\n", layer,
                              100 * firings / (static_cast<double>(profile->tokens) * h.ffn),
                              100 * covered[10], 100 * covered[20], 100 * covered[30], 100 * covered[50]);
  }
}

absl::Status PrintPlacement(const model::Model& model, const std::optional<model::Profile>& profile,
                            int64_t budget_bytes, int64_t kv_tokens, std::ostream& out) {
  const model::Hyperparameters& h = model.hyperparameters();
  const PurposeBytes bytes = SumByPurpose(model);
  const int64_t tokens = kv_tokens > 0 ? kv_tokens : h.trained_context;
  const int64_t attention = bytes.attention + bytes.norms;
  const int64_t head = bytes.embedding + bytes.head;
  const int64_t kv = KvBytes(h, tokens);
  const DefaultPredictor predictor = PredictorOf(model);
  const int64_t dense = attention + head + kv + predictor.bytes;
  if (dense > budget_bytes) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "a budget of %s is too small for '%s': attention %s, embedding and head %s, KV "
        "cache of %d tokens %s and "
        "predictor '%s' %s need %s before the first hot neuron",
        FormatBytes(budget_bytes), model.DisplayName(), FormatBytes(attention), FormatBytes(head), tokens,
        FormatBytes(kv), predictor.name, FormatBytes(predictor.bytes), FormatBytes(dense)));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const neuron::PlanInput input,
                            MakePlanInput(model, profile, budget_bytes - dense));
  ISOTHERM_ASSIGN_OR_RETURN(const neuron::Plan plan, neuron::PlanPlacement(input));

  out << absl::StreamFormat(
      "\nWith %s of GPU memory, before the worker's workspace and what its device keeps for itself (both are "
      "in gpu_worker --plan-only)\n",
      FormatBytes(budget_bytes));
  const auto line = [&out](const std::string& name, int64_t part) {
    out << absl::StreamFormat("  %-22s %12s\n", name, FormatBytes(part));
  };
  line("attention", attention);
  line("embedding and head", head);
  line(absl::StrCat("KV cache, ", tokens, " tokens"), kv);
  line(absl::StrCat("predictor '", predictor.name, "'"), predictor.bytes);
  PrintPlan(model, plan, profile.has_value(), out);
  return absl::OkStatus();
}

}  // namespace isotherm::cli
