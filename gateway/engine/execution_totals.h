#ifndef ISOTHERM_GATEWAY_ENGINE_EXECUTION_TOTALS_H_
#define ISOTHERM_GATEWAY_ENGINE_EXECUTION_TOTALS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "isotherm/v1/inference.pb.h"
#include "isotherm/worker/v1/model_runner.pb.h"

namespace isotherm::gateway {

// What the workers did in the steps of one request, added up. Thread-compatible.
class ExecutionTotals {
 public:
  void Add(const worker::v1::StepStatistics& step);
  v1::ExecutionStatistics Summary() const;
  absl::Duration cpu_worker_wait() const { return cpu_worker_wait_; }

 private:
  struct Latency {
    double seconds;
    uint64_t exchanges;
  };
  // Of all exchanges, each taken as slow as the median of its step.
  double MedianLatency() const;

  bool exact_ = true;
  uint64_t neurons_total_ = 0;
  uint64_t neurons_computed_ = 0;
  uint64_t hot_neurons_computed_ = 0;
  uint64_t exchanges_ = 0;
  absl::Duration cpu_worker_wait_;
  std::string transport_ = "none";
  std::string predictor_;
  std::vector<Latency> latencies_;  // one a step
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_ENGINE_EXECUTION_TOTALS_H_
