#include "gpu_worker/service/step_metrics.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/observe/metrics.h"

namespace isotherm::gpu_worker {
namespace {

using observe::Registry;

constexpr int64_t kLayerGroups = 4;

struct LayerGroup {
  int64_t begin = 0, end = 0;
  observe::Gauge computed_share, hot_share;
};

std::vector<LayerGroup> MakeLayerGroups(int64_t layers) {
  std::vector<LayerGroup> groups;
  const int64_t count = std::min(layers, kLayerGroups);
  for (int64_t g = 0; g < count; ++g) {
    LayerGroup group;
    group.begin = layers * g / count;
    group.end = layers * (g + 1) / count;
    const observe::Labels labels = {{"layers", absl::StrCat(group.begin, "-", group.end - 1)}};
    group.computed_share = Registry::Global().GetGauge(
        "isotherm_neurons_computed_ratio",
        "Neurons computed over those a dense model computes, since the start.", labels);
    group.hot_share = Registry::Global().GetGauge(
        "isotherm_neurons_hot_ratio", "Hot neurons computed over all computed, since the start.", labels);
    groups.push_back(group);
  }
  return groups;
}

struct StepMetrics {
  observe::Counter steps = Registry::Global().GetCounter("isotherm_steps_total", "Steps completed.");
  observe::Histogram seconds = Registry::Global().GetHistogram("isotherm_step_seconds", "Duration of a step.",
                                                               observe::LatencyBuckets());
  observe::Histogram rows = Registry::Global().GetHistogram("isotherm_step_rows", "Token rows in a step.",
                                                            {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024});
  observe::Histogram single_row_seconds = Registry::Global().GetHistogram(
      "isotherm_single_row_step_seconds",
      "Duration of a step of one token row: what isotherm_plan_step_seconds predicts.",
      observe::LatencyBuckets());
  observe::Counter wait = Registry::Global().GetCounter(
      "isotherm_cpu_worker_wait_seconds_total", "Time steps were blocked waiting for the CPU worker.");
  static observe::Counter DecodePasses(const char* micro_batches) {
    return Registry::Global().GetCounter("isotherm_decode_passes_total",
                                         "Decode passes, by the groups of rows that took turns in them.",
                                         {{"micro_batches", micro_batches}});
  }
  observe::Counter whole_passes = DecodePasses("1"), divided_passes = DecodePasses("2");
  observe::Histogram exchange = Registry::Global().GetHistogram(
      "isotherm_exchange_seconds", "One layer's exchange, from request doorbell to answer.",
      observe::ExchangeBuckets());
  observe::Counter exchange_bytes = Registry::Global().GetCounter(
      "isotherm_exchange_bytes_total", "Bytes exchanged with the CPU worker, both ways.");
  observe::Counter computed = Registry::Global().GetCounter(
      "isotherm_neurons_computed_total", "Neurons computed, summed over layers and token rows.");
  observe::Counter hot = Registry::Global().GetCounter("isotherm_hot_neurons_computed_total",
                                                       "Of the neurons computed, the hot ones.");
  observe::Counter active = Registry::Global().GetCounter("isotherm_neurons_active_total",
                                                          "Neurons computed whose activation was not zero.");
};

StepMetrics& Metrics() {
  static StepMetrics* metrics = new StepMetrics();
  return *metrics;
}

}  // namespace

void RecordPlan(const MemoryPlan& plan, double step_seconds, const model::Hyperparameters& hyperparameters) {
  for (int i = 0; i < kMemoryPurposes; ++i) {
    const auto purpose = static_cast<MemoryPurpose>(i);
    Registry::Global()
        .GetGauge("isotherm_device_memory_bytes", "Planned device memory by purpose.",
                  {{"purpose", MemoryPurposeName(purpose)}})
        .Set(static_cast<double>(plan.bytes(purpose)));
  }
  Registry::Global()
      .GetGauge("isotherm_plan_step_seconds", "Predicted duration of a step of one token row.")
      .Set(step_seconds);
  Registry::Global()
      .GetGauge("isotherm_hot_neurons_ratio", "Share of all neurons placed hot.")
      .Set(static_cast<double>(plan.neurons.placement.HotCount()) /
           static_cast<double>(hyperparameters.layers * hyperparameters.ffn));
}

void RecordStep(const worker::v1::StepRequest& request, const worker::v1::StepStatistics& statistics,
                const Runner& runner, const model::Hyperparameters& hyperparameters) {
  StepMetrics& metrics = Metrics();
  int64_t rows = 0;
  for (const auto& slice : request.slices()) rows += slice.tokens_size();
  metrics.steps.Add();
  metrics.seconds.Observe(statistics.seconds());
  metrics.rows.Observe(static_cast<double>(rows));
  if (rows == 1) metrics.single_row_seconds.Observe(statistics.seconds());
  metrics.wait.Add(statistics.cpu_worker_wait_seconds());
  metrics.exchange_bytes.Add(static_cast<double>(statistics.exchange_bytes()));
  metrics.computed.Add(static_cast<double>(statistics.neurons_computed()));
  metrics.hot.Add(static_cast<double>(statistics.hot_neurons_computed()));
  metrics.active.Add(static_cast<double>(statistics.neurons_active()));
  if (const int64_t micro_batches = runner.last_micro_batches(); micro_batches > 0) {
    (micro_batches == 1 ? metrics.whole_passes : metrics.divided_passes).Add();
  }
  for (absl::Duration latency : runner.last_exchange_latencies()) {
    metrics.exchange.Observe(absl::ToDoubleSeconds(latency));
  }
  static const std::vector<LayerGroup>* groups =
      new std::vector<LayerGroup>(MakeLayerGroups(hyperparameters.layers));
  for (const LayerGroup& group : *groups) {
    double hot = 0, computed = 0;
    for (int64_t l = group.begin; l < group.end; ++l) {
      const LayerStatistics& layer = runner.layer_totals()[l];
      hot += static_cast<double>(layer.hot_computed);
      computed += static_cast<double>(layer.hot_computed + layer.cold_computed);
    }
    const double dense =
        static_cast<double>(runner.rows_total() * hyperparameters.ffn * (group.end - group.begin));
    group.computed_share.Set(dense > 0 ? computed / dense : 0);
    group.hot_share.Set(computed > 0 ? hot / computed : 0);
  }
}

void RecordStepAhead(bool asked_for) {
  const auto counter = [](const char* outcome) {
    return Registry::Global().GetCounter(
        "isotherm_steps_ahead_total", "Steps computed before the gateway asked for the next one, by outcome.",
        {{"outcome", outcome}});
  };
  static observe::Counter asked = counter("asked_for"), discarded = counter("discarded");
  (asked_for ? asked : discarded).Add();
}

void RecordStepFailure(absl::StatusCode code) {
  Registry::Global()
      .GetCounter("isotherm_step_failures_total", "Steps that failed.",
                  {{"code", absl::StatusCodeToString(code)}})
      .Add();
}

void RecordPlacementEpoch(uint64_t epoch) {
  Registry::Global()
      .GetGauge("isotherm_placement_epoch",
                "Epoch of the placement: how often the hot set changed, plus one.")
      .Set(static_cast<double>(epoch));
}

void RecordMoves(uint64_t epoch, int64_t neurons, int64_t bytes) {
  static const auto* swaps = new observe::Counter(Registry::Global().GetCounter(
      "isotherm_placement_swaps_total", "Cold neurons that took the place of hot ones."));
  static const auto* moved = new observe::Counter(Registry::Global().GetCounter(
      "isotherm_placement_moved_bytes_total", "Bytes copied to make neurons hot."));
  RecordPlacementEpoch(epoch);
  swaps->Add(static_cast<double>(neurons));
  moved->Add(static_cast<double>(bytes));
}

void RecordLogits(int64_t shared, int64_t inlined) {
  const auto counter = [](const char* transport) {
    return Registry::Global().GetCounter("isotherm_logits_rows_total",
                                         "Rows of logits answered to the gateway, by transport.",
                                         {{"transport", transport}});
  };
  static observe::Counter shared_rows = counter("shm");
  static observe::Counter inlined_rows = counter("inline");
  shared_rows.Add(static_cast<double>(shared));
  inlined_rows.Add(static_cast<double>(inlined));
}

void RecordTransport(const std::string& transport) {
  Registry::Global().SetState("isotherm_exchange_transport", "1 for the transport that exchanges use now.",
                              {}, {{"transport", transport}}, 1);
}

}  // namespace isotherm::gpu_worker
