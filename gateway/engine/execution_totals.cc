#include "gateway/engine/execution_totals.h"

#include <algorithm>

#include "gateway/engine/durations.h"

namespace isotherm::gateway {
namespace {

double Share(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

void ExecutionTotals::Add(const worker::v1::StepStatistics& step) {
  exact_ = exact_ && step.exact();
  neurons_total_ += step.neurons_total();
  neurons_computed_ += step.neurons_computed();
  hot_neurons_computed_ += step.hot_neurons_computed();
  exchanges_ += step.exchanges();
  cpu_worker_wait_ += absl::Seconds(step.cpu_worker_wait_seconds());
  if (!step.transport().empty()) transport_ = step.transport();
  predictor_ = step.predictor();
  if (step.exchanges() > 0) latencies_.push_back({step.exchange_latency_seconds(), step.exchanges()});
}

double ExecutionTotals::MedianLatency() const {
  std::vector<Latency> sorted = latencies_;
  std::sort(sorted.begin(), sorted.end(),
            [](const Latency& a, const Latency& b) { return a.seconds < b.seconds; });
  uint64_t passed = 0;
  for (const Latency& latency : sorted) {
    passed += latency.exchanges;
    if (2 * passed >= exchanges_) return latency.seconds;
  }
  return 0;
}

v1::ExecutionStatistics ExecutionTotals::Summary() const {
  v1::ExecutionStatistics summary;
  summary.set_mode(exact_ ? v1::EXECUTION_MODE_EXACT : v1::EXECUTION_MODE_PREDICTED);
  summary.set_computed_share(Share(neurons_computed_, neurons_total_));
  summary.set_hot_share(Share(hot_neurons_computed_, neurons_computed_));
  summary.set_cold_neurons_computed(neurons_computed_ - std::min(hot_neurons_computed_, neurons_computed_));
  summary.set_exchanges(exchanges_);
  *summary.mutable_exchange_latency() = ToProto(absl::Seconds(MedianLatency()));
  summary.set_transport(transport_);
  summary.set_predictor(predictor_);
  return summary;
}

}  // namespace isotherm::gateway
