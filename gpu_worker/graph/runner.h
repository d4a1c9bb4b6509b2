#ifndef ISOTHERM_GPU_WORKER_GRAPH_RUNNER_H_
#define ISOTHERM_GPU_WORKER_GRAPH_RUNNER_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu_worker/graph/micro_batch_policy.h"
#include "gpu_worker/graph/pipeline.h"
#include "isotherm/worker/v1/model_runner.pb.h"

namespace isotherm::gpu_worker {

// Turns steps into passes: checks every field, runs the decode rows and the prefill rows as separate passes
// and collects outputs and statistics. Thread-compatible.
class Runner {
 public:
  Runner(const model::Hyperparameters& hyperparameters, const RunnerOptions& options, Pipeline* pipeline);

  // InvalidArgument names the field at fault; errors of a pass (a lost worker) come back as they are.
  absl::StatusOr<worker::v1::StepSuccess> Run(const worker::v1::StepRequest& request);

  // Sums by layer since the start, for metrics. Rows times neurons.
  const std::vector<LayerStatistics>& layer_totals() const { return layer_totals_; }
  int64_t rows_total() const { return rows_total_; }
  // Of the decode pass of the last step; 0: it had none.
  int64_t last_micro_batches() const { return micro_batches_; }
  // Every exchange of the last step.
  const std::vector<absl::Duration>& last_exchange_latencies() const { return exchange_latencies_; }

 private:
  struct Output {
    int64_t slice = 0;
    int32_t row = 0;
    bool scored = false;
    uint32_t target = 0;
  };

  absl::Status Validate(const worker::v1::StepRequest& request) const;
  absl::Status ValidateSlice(const worker::v1::SequenceSlice& slice, const std::string& where) const;
  // What a step's passes add up to; it counts only if all of them succeed.
  struct Tally {
    std::vector<LayerStatistics> layers;
    int64_t rows = 0;
    std::vector<absl::Duration> exchange_latencies;
    absl::Duration cpu_worker_wait;
  };
  absl::Status RunPass(const worker::v1::StepRequest& request, const std::vector<int>& slices,
                       worker::v1::StepSuccess& success, Tally& tally);
  // On the devices, and counts it.
  absl::Status RunPrefill(const Pass& pass, Tally& tally);
  absl::Status RunDecode(Pass& pass, Tally& tally);
  absl::Status Collect(const std::vector<Output>& outputs, int64_t logit_rows,
                       worker::v1::StepSuccess& success);
  // The time that the pass waited for the CPU worker.
  absl::Duration TakePass(int64_t rows, Tally& tally);
  void Account(Tally tally, worker::v1::StepStatistics& statistics);

  const model::Hyperparameters h_;
  const RunnerOptions options_;
  Pipeline* const pipeline_;
  MicroBatchPolicy micro_batch_policy_;
  int64_t micro_batches_ = 0;
  std::vector<LayerStatistics> layer_totals_;
  int64_t rows_total_ = 0;
  int64_t passes_ = 0;  // begun
  std::vector<absl::Duration> exchange_latencies_;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_GRAPH_RUNNER_H_
