#ifndef ISOTHERM_GATEWAY_ENGINE_GATEWAY_METRICS_H_
#define ISOTHERM_GATEWAY_ENGINE_GATEWAY_METRICS_H_

#include <string>

#include "absl/status/status.h"
#include "common/observe/metrics.h"

namespace isotherm::gateway {

// The gateway's time series, in the process's registry. Handles: cheap to copy, thread-safe.
struct GatewayMetrics {
  GatewayMetrics();

  observe::Histogram time_to_first_token, inter_token_latency, queue_time, e2e_latency, prefill_time,
      decode_time;
  observe::Histogram batch_size, iteration_tokens;
  observe::Counter prompt_tokens, generation_tokens, preemptions, worker_rebuilds;
  observe::Gauge requests_running, requests_waiting, kv_cache_usage;

  void CountSuccess(const std::string& finished_reason) const;
  void CountFailure(const absl::Status& status) const;
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_ENGINE_GATEWAY_METRICS_H_
