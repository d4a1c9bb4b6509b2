#include "cpu_worker/execute/neuron_executor.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "common/neuron/mask.h"

namespace isotherm::cpu_worker {

NeuronExecutor::Metrics NeuronExecutor::MakeMetrics() {
  observe::Registry& registry = observe::Registry::Global();
  return {registry.GetCounter("isotherm_cpu_worker_exchanges_total",
                              "Exchanges answered: one for a layer and micro-batch."),
          registry.GetCounter("isotherm_cpu_worker_rows_total", "Token rows of the exchanges answered."),
          registry.GetCounter("isotherm_cpu_worker_neurons_computed_total",
                              "Neurons computed, once for each token row that asked."),
          registry.GetCounter("isotherm_cpu_worker_neurons_active_total",
                              "Of the neurons computed, those whose activation was not zero."),
          registry.GetCounter(
              "isotherm_cpu_worker_neuron_bytes_total",
              "Bytes of weights read for the neurons computed, once for all rows of an exchange."),
          registry.GetCounter("isotherm_cpu_worker_neurons_expected_total",
                              "Neurons that the GPU worker announced, a layer early."),
          registry.GetCounter("isotherm_cpu_worker_neurons_expected_rightly_total",
                              "Of these, neurons that were then asked for."),
          registry.GetHistogram("isotherm_cpu_worker_exchange_compute_seconds",
                                "Time to compute one exchange, without its transport.",
                                observe::ExchangeBuckets())};
}

NeuronExecutor::NeuronExecutor(const Store* store, const model::Hyperparameters& model,
                               base::ThreadPool* pool, const Spin& spin)
    : store_(store),
      model_(model),
      pool_(pool),
      spin_(spin),
      metrics_(MakeMetrics()),
      ffn_(pool, model.hidden, model.ffn, kMaxRows),
      firings_(model.layers, std::vector<uint64_t>(model.ffn)) {}

absl::StatusOr<exchange::ServerAnswer> NeuronExecutor::Execute(const exchange::ServerRequest& request,
                                                               float* y) {
  const absl::Time start = absl::Now();
  neuron::FfnRequest ffn;
  ffn.rows = request.header.rows;
  ffn.x = request.x;
  ffn.masks = request.masks;
  ffn.ffn = model_.ffn;
  ffn.gate_values = request.gate_values;
  ffn.dense = request.header.dense;
  ffn.activation = model_.activation;
  ffn.activation_threshold = model_.activation_threshold;
  neuron::FfnStatistics statistics;
  {
    base::MutexLock lock(&firings_mutex_);
    ffn.firings = firings_[request.header.layer].data();
    statistics = ffn_.Run(store_->View(request.header.layer), ffn, y);
  }

  metrics_.seconds.Observe(absl::ToDoubleSeconds(absl::Now() - start));
  metrics_.exchanges.Add();
  metrics_.rows.Add(static_cast<double>(ffn.rows));
  metrics_.computed.Add(static_cast<double>(statistics.computed));
  metrics_.active.Add(static_cast<double>(statistics.active));
  metrics_.bytes.Add(static_cast<double>(statistics.bytes));
  CountExpected(request);
  return exchange::ServerAnswer{statistics.computed, statistics.active};
}

void NeuronExecutor::OnStep(exchange::StepState state) {
  const bool open = state != exchange::StepState::kClosed;
  {
    base::MutexLock lock(&mutex_);
    step_open_ = open;
  }
  pool_->SetSpin(state == exchange::StepState::kOpenOnDevice ? spin_.device_us : spin_.usual_us);
  // Wakes the members, which then spin for the step's first exchange.
  if (open) pool_->Run([](int) {});
}

void NeuronExecutor::OnExpectation(int64_t layer, const uint64_t* mask, absl::FunctionRef<bool()> stop) {
  expected_layer_ = layer;
  expected_.assign(mask, mask + neuron::MaskWords(model_.ffn));
  ffn_.Prefetch(store_->View(layer), mask, stop);
}

void NeuronExecutor::CountExpected(const exchange::ServerRequest& request) {
  if (std::exchange(expected_layer_, -1) != request.header.layer) return;
  const int64_t words = neuron::MaskWords(model_.ffn);
  int64_t rightly = 0;
  for (int64_t w = 0; w < words; ++w) {
    uint64_t asked = 0;
    for (int64_t row = 0; row < request.header.rows; ++row) asked |= request.masks[row * words + w];
    rightly += __builtin_popcountll(asked & expected_[w]);
  }
  metrics_.expected.Add(static_cast<double>(neuron::CountBits(expected_.data(), words)));
  metrics_.expected_rightly.Add(static_cast<double>(rightly));
}

std::vector<std::vector<uint64_t>> NeuronExecutor::Firings() const {
  base::MutexLock lock(&firings_mutex_);
  return firings_;
}

void NeuronExecutor::ClearFirings() {
  base::MutexLock lock(&firings_mutex_);
  for (std::vector<uint64_t>& layer : firings_) std::fill(layer.begin(), layer.end(), 0);
}

void NeuronExecutor::CopyBundles(int64_t layer, absl::Span<const uint32_t> neurons, std::string& out) const {
  const neuron::BundleView view = store_->View(layer);
  out.clear();
  out.reserve(neurons.size() * view.layout->bundle_bytes);
  for (const uint32_t neuron : neurons) {
    out.append(reinterpret_cast<const char*>(view.bundles) + neuron * view.layout->bundle_bytes,
               view.layout->bundle_bytes);
  }
}

void NeuronExecutor::AwaitStepEnd(absl::Duration timeout) const {
  base::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(
                              +[](const bool* open) { return !*open; }, &step_open_),
                          timeout);
}

}  // namespace isotherm::cpu_worker
