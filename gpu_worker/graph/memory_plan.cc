#include "gpu_worker/graph/memory_plan.h"

#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/neuron/bundle.h"
#include "common/neuron/mask.h"
#include "gpu_worker/device/matrix.h"

namespace isotherm::gpu_worker {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;
// Expected cost of one exchange beside the cold rows' own time: a futex round trip between two processes of
// one host, 10-17 us where both wait parked, and the copies.
constexpr double kExchangeSeconds = 30e-6;
// Bytes a second that two channels of DDR4 give: by this a plan weighs the reading of cold neurons against an
// exchange. What one start measures differs from what the next does, and the placement would with it.
constexpr double kNominalReadBandwidth = 20e9;
// Predictors ask for more neurons than fire, as recall is worth more than precision; the planner needs the
// scale only.
constexpr double kPredictedOverActive = 1.3;

int64_t& At(MemoryPlan& plan, MemoryPurpose purpose) { return plan.bytes[static_cast<int>(purpose)]; }

int64_t AttentionBytes(const model::Model& model) {
  int64_t bytes = 0;
  for (const model::Layer& layer : model.layers()) {
    for (const model::Affine* projection : {&layer.q, &layer.k, &layer.v, &layer.attention_output}) {
      bytes += DeviceProjectionBytes(*projection);
    }
    bytes += DeviceNormBytes(layer.attention_norm) + DeviceNormBytes(layer.ffn_norm);
    bytes += DeviceVectorBytes(layer.down_bias);
  }
  return bytes;
}

int64_t EmbeddingBytes(const model::Model& model) {
  const int64_t positions = DeviceMatrixBytes(model.position_embedding());
  return TiesEmbedding(model) ? positions : positions + DeviceMatrixBytes(model.token_embedding());
}

int64_t HeadBytes(const model::Model& model) {
  return DeviceMatrixBytes(model.output()) + DeviceNormBytes(model.output_norm());
}

absl::StatusOr<neuron::PlanInput> MakePlanInput(const model::Model& model,
                                                const std::optional<model::Profile>& profile,
                                                double read_bandwidth) {
  const model::Hyperparameters& h = model.hyperparameters();
  neuron::PlanInput input;
  input.layers = h.layers;
  input.ffn = h.ffn;
  for (int64_t l = 0; l < h.layers; ++l) {
    ISOTHERM_ASSIGN_OR_RETURN(const neuron::BundleLayout layout, neuron::MakeBundleLayout(model, l));
    // The id that maps a bundle to its neuron lies beside it.
    input.neuron_bytes.push_back(layout.bundle_bytes + static_cast<int64_t>(sizeof(int32_t)));
  }
  if (profile.has_value()) {
    input.counts = profile->counts;
    input.profile_tokens = profile->tokens;
  }
  // The host device draws on the same memory bus as the CPU worker: a hot neuron saves the exchange and costs
  // nothing that the cold one would not, so hot time counts as zero and the budget is filled.
  input.cold_time.seconds_per_neuron = static_cast<double>(input.neuron_bytes.front()) / read_bandwidth;
  input.exchange_seconds = kExchangeSeconds;
  input.predicted_over_active = kPredictedOverActive;
  return input;
}

// Rounded up, in GiB: the budget that a message names must do.
double LeastBudget(int64_t bytes) { return std::ceil(bytes / kMiB / 1024 * 1000) / 1000; }

absl::StatusOr<neuron::Plan> PlaceNeurons(const neuron::PlanInput& input,
                                          const std::optional<neuron::Placement>& placement,
                                          int64_t dense_bytes) {
  if (!placement.has_value()) return neuron::PlanPlacement(input);
  ISOTHERM_ASSIGN_OR_RETURN(neuron::Plan plan, neuron::AssessPlacement(input, *placement));
  if (plan.hot_bytes <= input.hot_budget_bytes) return plan;
  return absl::ResourceExhaustedError(absl::StrFormat(
      "the hot neurons of --placement take %.1f MiB, and --vram-budget leaves %.1f MiB for them. Raise the "
      "budget to %.3f GiB, or leave out --placement",
      plan.hot_bytes / kMiB, input.hot_budget_bytes / kMiB, LeastBudget(dense_bytes + plan.hot_bytes)));
}

}  // namespace

int64_t MemoryPlan::total() const { return std::accumulate(bytes.begin(), bytes.end(), int64_t{0}); }

int64_t KvBytes(const model::Hyperparameters& h, const RunnerOptions& options) {
  return 2 * h.layers * options.kv_blocks() * options.kv_block_size * h.kv_heads *
         kernels::KvRowBytes(options.kv_type, h.head_dim);
}

int64_t WorkspaceBytes(const model::Hyperparameters& h, const RunnerOptions& options) {
  const int64_t rows = options.max_rows();
  const int64_t query = h.heads * h.head_dim;
  const int64_t key = h.kv_heads * h.head_dim;
  // residual, normed, FFN input and output, gathered rows | q, attention | k, v | scores
  const int64_t floats = rows * (5 * h.hidden + 2 * query + 2 * key + h.ffn) +
                         (options.max_decode_rows + kScoreRows) * h.vocabulary + rows;
  const int64_t masks = rows * neuron::MaskWords(h.ffn) * 8 + h.layers * neuron::MaskWords(h.ffn) * 8;
  return floats * static_cast<int64_t>(sizeof(float)) + masks +
         h.rope_dims / 2 * static_cast<int64_t>(sizeof(float)) + options.hot_staging_bytes;
}

absl::StatusOr<MemoryPlan> PlanMemory(const model::Model& model, const RunnerOptions& options,
                                      const PlacementSource& source, const DeviceMemoryTraits& device) {
  const model::Hyperparameters& h = model.hyperparameters();
  MemoryPlan plan;
  At(plan, MemoryPurpose::kDevice) = device.own_bytes;
  if (!device.embeds_from_host) At(plan, MemoryPurpose::kEmbedding) = EmbeddingBytes(model);
  At(plan, MemoryPurpose::kAttention) = AttentionBytes(model);
  At(plan, MemoryPurpose::kHead) = HeadBytes(model);
  At(plan, MemoryPurpose::kKvCache) = KvBytes(h, options);
  PredictorOptions predictor{options.predictor, options.predictor_threshold_shift, options.max_rows()};
  ISOTHERM_ASSIGN_OR_RETURN(At(plan, MemoryPurpose::kPredictor), PredictorBytes(model, predictor));
  At(plan, MemoryPurpose::kWorkspace) = WorkspaceBytes(h, options);

  ISOTHERM_ASSIGN_OR_RETURN(neuron::PlanInput input,
                            MakePlanInput(model, source.profile, kNominalReadBandwidth));
  const int64_t dense = plan.total();
  if (options.budget_bytes.has_value()) {
    if (dense > *options.budget_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrFormat("--vram-budget of %.3f GiB is too small for '%s': the device's own %.1f MiB, "
                          "attention %.1f MiB, embedding and head %.1f MiB, KV cache of %d "
                          "tokens %.1f MiB, predictor '%s' %.1f MiB and workspace %.1f MiB need %.3f GiB "
                          "before the first hot neuron. Raise "
                          "the budget, or lower --kv-tokens, --ctx or --max-prefill-rows",
                          *options.budget_bytes / kMiB / 1024, model.DisplayName(),
                          At(plan, MemoryPurpose::kDevice) / kMiB, At(plan, MemoryPurpose::kAttention) / kMiB,
                          (At(plan, MemoryPurpose::kEmbedding) + At(plan, MemoryPurpose::kHead)) / kMiB,
                          options.kv_tokens, At(plan, MemoryPurpose::kKvCache) / kMiB,
                          PredictorKindName(options.predictor), At(plan, MemoryPurpose::kPredictor) / kMiB,
                          At(plan, MemoryPurpose::kWorkspace) / kMiB, LeastBudget(dense)));
    }
    input.hot_budget_bytes = *options.budget_bytes - dense;
  } else {
    for (int64_t l = 0; l < h.layers; ++l) input.hot_budget_bytes += h.ffn * input.neuron_bytes[l];
  }
  ISOTHERM_ASSIGN_OR_RETURN(plan.neurons, PlaceNeurons(input, source.placement, dense));
  At(plan, MemoryPurpose::kHotNeurons) = plan.neurons.hot_bytes;
  return plan;
}

absl::StatusOr<double> PredictStepSeconds(const model::Model& model,
                                          const std::optional<model::Profile>& profile,
                                          const neuron::Placement& placement, double read_bandwidth) {
  ISOTHERM_ASSIGN_OR_RETURN(neuron::PlanInput input, MakePlanInput(model, profile, read_bandwidth));
  input.hot_time = input.cold_time;
  ISOTHERM_ASSIGN_OR_RETURN(const neuron::Plan timed, neuron::AssessPlacement(input, placement));
  const int64_t dense = AttentionBytes(model) + DeviceMatrixBytes(model.output());
  return static_cast<double>(dense) / read_bandwidth + timed.ffn_seconds;
}

std::string MemoryPlan::ToString(const model::Model& model) const {
  const model::Hyperparameters& h = model.hyperparameters();
  std::string text = "plan:";
  for (int i = 0; i < kMemoryPurposes; ++i) {
    absl::StrAppendFormat(&text, " %s %.1f MiB,", MemoryPurposeName(static_cast<MemoryPurpose>(i)),
                          bytes[i] / kMiB);
  }
  double coverage = 0;
  for (double layer : neurons.coverage) coverage += layer / h.layers;
  absl::StrAppendFormat(
      &text, " total %.1f MiB; %.1f %% of neurons hot, expected to make %.1f %% of the firings",
      total() / kMiB, 100.0 * neurons.placement.HotCount() / (h.layers * h.ffn), 100 * coverage);
  return text;
}

}  // namespace isotherm::gpu_worker
