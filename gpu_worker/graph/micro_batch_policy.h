#ifndef ISOTHERM_GPU_WORKER_GRAPH_MICRO_BATCH_POLICY_H_
#define ISOTHERM_GPU_WORKER_GRAPH_MICRO_BATCH_POLICY_H_

#include <algorithm>
#include <array>
#include <cstdint>

#include "absl/time/time.h"
#include "common/kernels/ops.h"
#include "common/neuron/ffn.h"

namespace isotherm::gpu_worker {

// Into how many micro-batches decode passes are divided. With two the GPU worker computes one while the CPU
// worker, and the wire to it, has the other: at most the time spent waiting is gained, and every weight is
// read twice. Which is more depends on the wire, on both machines and on the rows, so that both ways are
// timed now and then for each number of rows; the results are the same bit for bit. Thread-compatible.
class MicroBatchPolicy {
 public:
  // Most rows that are divided unasked: up to here results do not depend on the rows beside them.
  static constexpr int64_t kMostRows = std::min(kernels::kGemmRows, neuron::kSparseRows);
  // Passes that are timed each way, and those after which they are timed again.
  static constexpr int64_t kTrialPasses = 8;
  static constexpr int64_t kHoldPasses = 512;

  // `fixed`: always so many, where a pass has as many rows; 0: by measurement. Never more than `most`.
  MicroBatchPolicy(int64_t fixed, int64_t most) : fixed_(fixed), most_(most) {}

  int64_t Choose(int64_t rows) const;
  // After a pass that went as chosen: how long it took, and how much of that it waited for the CPU worker.
  void Record(int64_t rows, absl::Duration pass, absl::Duration wait);

 private:
  struct Trial {
    int64_t micro_batches = 1;
    int64_t hold = 0;  // passes until the next trial; 0: one is going on
    // Of the passes with so many micro-batches.
    int64_t passes = 0;
    absl::Duration fastest = absl::InfiniteDuration();
    absl::Duration wait;  // in the fastest
    absl::Duration fastest_with_one;
  };
  bool Measures(int64_t rows) const { return fixed_ == 0 && most_ > 1 && rows > 1 && rows <= kMostRows; }

  const int64_t fixed_;
  const int64_t most_;
  std::array<Trial, kMostRows + 1> trials_;  // by rows
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_GRAPH_MICRO_BATCH_POLICY_H_
