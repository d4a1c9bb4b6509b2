#ifndef ISOTHERM_GPU_WORKER_SERVICE_FIRING_LOG_H_
#define ISOTHERM_GPU_WORKER_SERVICE_FIRING_LOG_H_

#include <cstdint>

#include "gpu_worker/device/device.h"

namespace isotherm::gpu_worker {

// How often each neuron fired in a number of token rows.
struct Firings {
  int64_t tokens = 0;
  FiringCounts counts;
};

// Adds up the hot neurons' firings, which the device counts, and the cold ones', which the CPU worker counts,
// so that both are always of the same tokens: what either counted in a step that failed, or before a
// connection was lost and after it was last settled, is left out on both sides. `rows` below are the token
// rows of all steps that succeeded since the start. Thread-compatible.
class FiringLog {
 public:
  FiringLog(int64_t layers, int64_t ffn);

  // The CPU worker counts from zero: what was not settled before has lost its cold half, and is dropped.
  void OnExchangeOpened(int64_t rows);

  // What the device counted since the last call.
  void AddHot(const FiringCounts& hot);

  // Brings the totals up to date. `cold`: all since the exchange was opened; empty where every neuron is hot.
  void Settle(const FiringCounts& cold, int64_t rows);

  // As of the last Settle.
  const Firings& totals() const { return totals_; }
  int64_t settled_rows() const { return settled_rows_; }

 private:
  Firings before_;  // the exchange was opened
  int64_t rows_before_ = 0;
  FiringCounts hot_;  // since then
  Firings totals_;
  int64_t settled_rows_ = 0;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_SERVICE_FIRING_LOG_H_
