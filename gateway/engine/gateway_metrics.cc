#include "gateway/engine/gateway_metrics.h"

#include <vector>

namespace isotherm::gateway {
namespace {

observe::Registry& Metrics() { return observe::Registry::Global(); }

observe::Histogram LatencyHistogram(const std::string& name, const std::string& help) {
  return Metrics().GetHistogram("isotherm_" + name + "_seconds", help, observe::LatencyBuckets());
}

// Powers of two: a batch size is one of few, and tokens of a step range from 1 to a few prefill chunks.
std::vector<double> PowersOfTwo(int count) {
  std::vector<double> bounds;
  for (int i = 0; i < count; ++i) bounds.push_back(static_cast<double>(int64_t{1} << i));
  return bounds;
}

}  // namespace

GatewayMetrics::GatewayMetrics()
    : time_to_first_token(LatencyHistogram("time_to_first_token", "From arrival to the first token.")),
      inter_token_latency(LatencyHistogram("inter_token_latency", "Between two tokens of a stream.")),
      queue_time(LatencyHistogram("request_queue_time", "From arrival to the first step.")),
      e2e_latency(
          LatencyHistogram("e2e_request_latency", "From arrival to the end of a successful request.")),
      prefill_time(LatencyHistogram("request_prefill_time", "From the first step to the first token.")),
      decode_time(LatencyHistogram("request_decode_time", "From the first token to the end.")),
      batch_size(Metrics().GetHistogram("isotherm_batch_size", "Sequences in a step.", PowersOfTwo(11))),
      iteration_tokens(Metrics().GetHistogram("isotherm_iteration_tokens_total", "Token rows in a step.",
                                              PowersOfTwo(15))),
      prompt_tokens(
          Metrics().GetCounter("isotherm_prompt_tokens_total", "Prompt tokens of requests started.")),
      generation_tokens(Metrics().GetCounter("isotherm_generation_tokens_total", "Tokens generated.")),
      preemptions(Metrics().GetCounter("isotherm_num_preemptions_total",
                                       "Sequences that gave up their KV blocks to older ones.")),
      worker_rebuilds(
          Metrics().GetCounter("isotherm_worker_rebuilds_total",
                               "Sequences whose KV cache was lost with a worker and built again.")),
      requests_running(Metrics().GetGauge("isotherm_num_requests_running", "Sequences with KV blocks.")),
      requests_waiting(Metrics().GetGauge("isotherm_num_requests_waiting", "Sequences in the queue.")),
      kv_cache_usage(Metrics().GetGauge("isotherm_kv_cache_usage_ratio", "KV blocks in use, 0 to 1.")) {}

void GatewayMetrics::CountSuccess(const std::string& finished_reason) const {
  Metrics()
      .GetCounter("isotherm_request_success_total", "Requests that ended well.",
                  {{"finished_reason", finished_reason}})
      .Add();
}

void GatewayMetrics::CountFailure(const absl::Status& status) const {
  Metrics()
      .GetCounter("isotherm_request_failure_total", "Requests that ended with an error.",
                  {{"code", absl::StatusCodeToString(status.code())}})
      .Add();
}

}  // namespace isotherm::gateway
