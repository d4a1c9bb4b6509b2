#include "gpu_worker/graph/memory_plan.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/round_up.h"
#include "common/base/status_macros.h"
#include "common/kernels/sketch.h"
#include "common/neuron/bundle.h"
#include "common/neuron/mask.h"
#include "gpu_worker/device/matrix.h"
#include "gpu_worker/graph/divide_layers.h"

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

int64_t& At(StagePlan& plan, MemoryPurpose purpose) { return plan.bytes[static_cast<int>(purpose)]; }
int64_t At(const StagePlan& plan, MemoryPurpose purpose) { return plan.bytes[static_cast<int>(purpose)]; }

int64_t AttentionBytes(const model::Layer& layer) {
  int64_t bytes = DeviceNormBytes(layer.attention_norm) + DeviceNormBytes(layer.ffn_norm);
  for (const model::Affine* projection : {&layer.q, &layer.k, &layer.v, &layer.attention_output}) {
    bytes += DeviceProjectionBytes(*projection);
  }
  return bytes + DeviceVectorBytes(layer.down_bias);
}

// `with_head`: the head's matrix, which may be the embedding's too, is on the same device.
int64_t EmbeddingBytes(const model::Model& model, bool with_head) {
  const int64_t positions = DeviceMatrixBytes(model.position_embedding());
  const bool shared = with_head && TiesEmbedding(model);
  return shared ? positions : positions + DeviceMatrixBytes(model.token_embedding());
}

int64_t HeadBytes(const model::Model& model) {
  return DeviceMatrixBytes(model.output()) + DeviceNormBytes(model.output_norm());
}

int64_t KvBytesOfLayer(const model::Hyperparameters& h, const RunnerOptions& options) {
  return 2 * options.kv_blocks() * options.kv_block_size * h.kv_heads *
         kernels::KvRowBytes(options.kv_type, h.head_dim);
}

int64_t LogitBytes(const model::Hyperparameters& h, const RunnerOptions& options) {
  return ((options.max_decode_rows + kScoreRows) * h.vocabulary + options.max_rows()) *
         static_cast<int64_t>(sizeof(float));
}

// Without the logits.
int64_t WorkspaceBytes(const model::Hyperparameters& h, const RunnerOptions& options, int64_t layers) {
  const int64_t rows = options.max_rows();
  const int64_t query = h.heads * h.head_dim;
  const int64_t key = h.kv_heads * h.head_dim;
  // residual, normed, FFN input and output, gathered rows | q, attention | k, v | scores | expected input and
  // scores
  const int64_t floats = rows * (5 * h.hidden + 2 * query + 2 * key + h.ffn) +
                         kLookAheadRows * (h.hidden + h.ffn) + h.rope_dims / 2;
  const int64_t masks = (rows + kLookAheadRows + layers) * neuron::MaskWords(h.ffn) * 8;
  return floats * static_cast<int64_t>(sizeof(float)) + masks + options.hot_staging_bytes;
}

PredictorOptions PredictorOf(const RunnerOptions& options) {
  return {options.predictor, options.predictor_threshold_shift, options.max_rows()};
}

// What a layer's larger allocations lose to being rounded up. How many neurons are hot is not known yet: half
// a unit, which is what it is on average.
int64_t RoundingBytes(const model::Layer& layer, const model::Hyperparameters& h,
                      const RunnerOptions& options, int64_t unit) {
  const auto lost = [unit](int64_t bytes) {
    return bytes < unit / 2 ? 0 : base::RoundUp(bytes, unit) - bytes;
  };
  int64_t bytes = unit / 2 + lost(KvBytesOfLayer(h, options));
  for (const model::Affine* projection : {&layer.q, &layer.k, &layer.v, &layer.attention_output}) {
    bytes += lost(DeviceMatrixBytes(projection->weight));
  }
  if (options.predictor == PredictorKind::kGate) bytes += lost(DeviceMatrixBytes(layer.activated()));
  if (options.predictor == PredictorKind::kSketch) bytes += lost(h.ffn * kernels::SketchRowBytes(h.hidden));
  if (options.predictor == PredictorKind::kLowRank && layer.predictor.has_value()) {
    bytes += lost(DeviceMatrixBytes(layer.predictor->a)) + lost(DeviceMatrixBytes(layer.predictor->b));
  }
  return bytes;
}

// All that a device holds but its hot neurons.
absl::StatusOr<StagePlan> PlanDenseParts(const model::Model& model, const RunnerOptions& options,
                                         LayerRange layers, const DeviceMemoryTraits& device) {
  const model::Hyperparameters& h = model.hyperparameters();
  const bool first = layers.begin == 0;
  const bool last = layers.end == h.layers;
  StagePlan plan{.layers = layers};
  At(plan, MemoryPurpose::kDevice) = device.own_bytes;
  if (first && !device.embeds_from_host) At(plan, MemoryPurpose::kEmbedding) = EmbeddingBytes(model, last);
  if (last) At(plan, MemoryPurpose::kHead) = HeadBytes(model);
  for (int64_t l = layers.begin; l < layers.end; ++l) {
    At(plan, MemoryPurpose::kAttention) += AttentionBytes(model.layers()[l]);
    At(plan, MemoryPurpose::kDevice) += RoundingBytes(model.layers()[l], h, options, device.allocation_unit);
  }
  At(plan, MemoryPurpose::kKvCache) = layers.count() * KvBytesOfLayer(h, options);
  ISOTHERM_ASSIGN_OR_RETURN(At(plan, MemoryPurpose::kPredictor),
                            PredictorBytes(model, PredictorOf(options), layers));
  At(plan, MemoryPurpose::kWorkspace) =
      WorkspaceBytes(h, options, layers.count()) + (last ? LogitBytes(h, options) : 0);
  return plan;
}

// As heavy as the devices would be with every neuron of the layers from `begin` on hot.
absl::StatusOr<ModelWeight> Weigh(const model::Model& model, const RunnerOptions& options,
                                  const neuron::PlanInput& input, const DeviceMemoryTraits& first,
                                  int64_t begin) {
  const model::Hyperparameters& h = model.hyperparameters();
  ModelWeight weight;
  for (int64_t l = begin; l < h.layers; ++l) {
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t predictor,
                              PredictorBytes(model, PredictorOf(options), {l, l + 1}));
    weight.layers.push_back(AttentionBytes(model.layers()[l]) + KvBytesOfLayer(h, options) + predictor +
                            h.ffn * input.neuron_bytes[l]);
  }
  if (begin == 0 && !first.embeds_from_host) weight.first = EmbeddingBytes(model, /*with_head=*/false);
  weight.last = HeadBytes(model) + LogitBytes(h, options);
  return weight;
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

// What the devices hold of the layers from `begin` on, without hot neurons.
absl::StatusOr<std::vector<StagePlan>> PlanStages(const model::Model& model, const RunnerOptions& options,
                                                  const neuron::PlanInput& input,
                                                  const std::vector<DeviceMemoryTraits>& devices,
                                                  int64_t begin) {
  ISOTHERM_ASSIGN_OR_RETURN(const ModelWeight weight, Weigh(model, options, input, devices.front(), begin));
  std::vector<StagePlan> stages;
  for (const LayerRange& range : DivideLayers(weight, static_cast<int64_t>(devices.size()))) {
    const DeviceMemoryTraits& device = devices[stages.size()];
    ISOTHERM_ASSIGN_OR_RETURN(
        stages.emplace_back(),
        PlanDenseParts(model, options, {begin + range.begin, begin + range.end}, device));
  }
  return stages;
}

// The part of the input that is about these layers.
neuron::PlanInput Restrict(const neuron::PlanInput& whole, LayerRange layers) {
  neuron::PlanInput part = whole;
  part.layers = layers.count();
  part.neuron_bytes.assign(whole.neuron_bytes.begin() + layers.begin,
                           whole.neuron_bytes.begin() + layers.end);
  if (!whole.counts.empty()) {
    part.counts.assign(whole.counts.begin() + layers.begin, whole.counts.begin() + layers.end);
  }
  return part;
}

void Append(neuron::Plan part, neuron::Plan& whole) {
  const auto append = [](auto& from, auto& to) {
    std::move(from.begin(), from.end(), std::back_inserter(to));
  };
  whole.placement.epoch = part.placement.epoch;
  whole.placement.ffn = part.placement.ffn;
  append(part.placement.hot, whole.placement.hot);
  append(part.coverage, whole.coverage);
  whole.ffn_seconds += part.ffn_seconds;
  whole.hot_bytes += part.hot_bytes;
}

// `input` is about the stage's layers; `budget` is what the stage may hold, if that is limited.
absl::StatusOr<neuron::Plan> PlaceNeurons(neuron::PlanInput input, const StagePlan& stage,
                                          const std::optional<neuron::Placement>& placement,
                                          std::optional<int64_t> budget) {
  const int64_t all = std::accumulate(input.neuron_bytes.begin(), input.neuron_bytes.end(), int64_t{0});
  input.hot_budget_bytes = budget.has_value() ? *budget - stage.total() : input.ffn * all;
  if (stage.offloaded) input.hot_budget_bytes = 0;
  if (!placement.has_value() || stage.offloaded) return neuron::PlanPlacement(input);
  neuron::Placement here = *placement;
  here.hot.assign(placement->hot.begin() + stage.layers.begin, placement->hot.begin() + stage.layers.end);
  ISOTHERM_ASSIGN_OR_RETURN(neuron::Plan plan, neuron::AssessPlacement(input, here));
  if (plan.hot_bytes <= input.hot_budget_bytes) return plan;
  const int64_t missing = plan.hot_bytes - input.hot_budget_bytes;
  return absl::ResourceExhaustedError(absl::StrFormat(
      "the hot neurons of --placement take %.1f MiB, and --vram-budget leaves %.1f MiB for them. Raise the "
      "budget to %.3f GiB a device, or leave out --placement",
      plan.hot_bytes / kMiB, input.hot_budget_bytes / kMiB, LeastBudget(*budget + missing)));
}

// What each device may hold; absent: as much as it takes. ResourceExhausted where that is less than a stage's
// dense parts.
absl::StatusOr<std::optional<int64_t>> BudgetOfEach(const model::Model& model, const RunnerOptions& options,
                                                    const std::vector<StagePlan>& stages) {
  if (!options.budget_bytes.has_value()) return std::nullopt;
  const auto parts = static_cast<int64_t>(stages.size());
  const int64_t each = *options.budget_bytes / parts;
  const StagePlan& largest =
      *std::max_element(stages.begin(), stages.end(),
                        [](const StagePlan& a, const StagePlan& b) { return a.total() < b.total(); });
  if (largest.total() <= each) return each;
  const auto mib = [&](MemoryPurpose purpose) { return At(largest, purpose) / kMiB; };
  const std::string where = parts == 1 ? "" : absl::StrFormat(" on %d devices", parts);
  return absl::ResourceExhaustedError(absl::StrFormat(
      "--vram-budget of %.3f GiB%s is too small for '%s': the device's own %.1f MiB, attention %.1f MiB, "
      "embedding and head %.1f MiB, KV cache of %d tokens %.1f MiB, predictor '%s' %.1f MiB and workspace "
      "%.1f MiB%s need %.3f GiB before the first hot neuron. Raise the budget, lower --kv-tokens, --ctx or "
      "--max-prefill-rows, or have layers on the CPU with --attention-offload",
      *options.budget_bytes / kMiB / 1024, where, model.DisplayName(), mib(MemoryPurpose::kDevice),
      mib(MemoryPurpose::kAttention), mib(MemoryPurpose::kEmbedding) + mib(MemoryPurpose::kHead),
      options.kv_tokens, mib(MemoryPurpose::kKvCache), PredictorKindName(options.predictor),
      mib(MemoryPurpose::kPredictor), mib(MemoryPurpose::kWorkspace),
      parts == 1 ? "" : " on the fullest device, as much on each,", LeastBudget(parts * largest.total())));
}

}  // namespace

int64_t StagePlan::total() const { return std::accumulate(bytes.begin(), bytes.end(), int64_t{0}); }

int64_t MemoryPlan::bytes(MemoryPurpose purpose) const {
  int64_t sum = 0;
  for (const StagePlan& stage : stages) sum += stage.offloaded ? 0 : At(stage, purpose);
  return sum;
}

int64_t MemoryPlan::total() const {
  int64_t sum = 0;
  for (const StagePlan& stage : stages) sum += stage.offloaded ? 0 : stage.total();
  return sum;
}

absl::StatusOr<MemoryPlan> PlanMemory(const model::Model& model, const RunnerOptions& options,
                                      const PlacementSource& source, const PlanDevices& on) {
  const model::Hyperparameters& h = model.hyperparameters();
  const auto parts = static_cast<int64_t>(on.devices.size());
  if (parts > h.layers) {
    return absl::InvalidArgumentError(absl::StrFormat("%d devices for '%s', which has %d layers: name fewer",
                                                      parts, model.DisplayName(), h.layers));
  }
  ISOTHERM_ASSIGN_OR_RETURN(neuron::PlanInput input,
                            MakePlanInput(model, source.profile, kNominalReadBandwidth));
  MemoryPlan plan;
  int64_t offloaded = 0;
  ISOTHERM_ASSIGN_OR_RETURN(plan.stages, PlanStages(model, options, input, on.devices, offloaded));
  absl::StatusOr<std::optional<int64_t>> budget = BudgetOfEach(model, options, plan.stages);
  while (!budget.ok() && on.offload_to.has_value() && offloaded + parts < h.layers) {
    ISOTHERM_ASSIGN_OR_RETURN(plan.stages, PlanStages(model, options, input, on.devices, ++offloaded));
    budget = BudgetOfEach(model, options, plan.stages);
  }
  ISOTHERM_RETURN_IF_ERROR(budget.status());
  if (offloaded > 0) {
    ISOTHERM_ASSIGN_OR_RETURN(StagePlan stage,
                              PlanDenseParts(model, options, {0, offloaded}, *on.offload_to));
    stage.offloaded = true;
    plan.stages.insert(plan.stages.begin(), stage);
  }
  for (StagePlan& stage : plan.stages) {
    ISOTHERM_ASSIGN_OR_RETURN(neuron::Plan placed,
                              PlaceNeurons(Restrict(input, stage.layers), stage, source.placement, *budget));
    At(stage, MemoryPurpose::kHotNeurons) = placed.hot_bytes;
    Append(std::move(placed), plan.neurons);
  }
  return plan;
}

absl::StatusOr<double> PredictStepSeconds(const model::Model& model,
                                          const std::optional<model::Profile>& profile,
                                          const neuron::Placement& placement, double read_bandwidth) {
  ISOTHERM_ASSIGN_OR_RETURN(neuron::PlanInput input, MakePlanInput(model, profile, read_bandwidth));
  input.hot_time = input.cold_time;
  ISOTHERM_ASSIGN_OR_RETURN(const neuron::Plan timed, neuron::AssessPlacement(input, placement));
  int64_t dense = DeviceMatrixBytes(model.output());
  for (const model::Layer& layer : model.layers()) dense += AttentionBytes(layer);
  return static_cast<double>(dense) / read_bandwidth + timed.ffn_seconds;
}

std::string MemoryPlan::ToString(const model::Model& model) const {
  const model::Hyperparameters& h = model.hyperparameters();
  std::string text = "plan:";
  for (int i = 0; i < kMemoryPurposes; ++i) {
    const auto purpose = static_cast<MemoryPurpose>(i);
    absl::StrAppendFormat(&text, " %s %.1f MiB,", MemoryPurposeName(purpose), bytes(purpose) / kMiB);
  }
  double coverage = 0;
  for (double layer : neurons.coverage) coverage += layer / h.layers;
  absl::StrAppendFormat(
      &text, " total %.1f MiB; %.1f %% of neurons hot, expected to make %.1f %% of the firings",
      total() / kMiB, 100.0 * neurons.placement.HotCount() / (h.layers * h.ffn), 100 * coverage);
  if (stages.size() == 1) return text;
  for (const StagePlan& stage : stages) {
    absl::StrAppendFormat(&text, "; layers %d to %d on %s with %.1f MiB", stage.layers.begin,
                          stage.layers.end - 1, stage.offloaded ? "the CPU" : "a device",
                          stage.total() / kMiB);
  }
  return text;
}

}  // namespace isotherm::gpu_worker
