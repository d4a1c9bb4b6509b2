#ifndef ISOTHERM_GPU_WORKER_SERVICE_STEP_METRICS_H_
#define ISOTHERM_GPU_WORKER_SERVICE_STEP_METRICS_H_

#include <string>

#include "gpu_worker/graph/memory_plan.h"
#include "gpu_worker/graph/runner.h"
#include "isotherm/worker/v1/model_runner.pb.h"

// The GPU worker's Prometheus series. Layers are reported in at most four groups, so that their number does
// not grow with the model.
namespace isotherm::gpu_worker {

void RecordPlan(const MemoryPlan& plan, double step_seconds, const model::Hyperparameters& hyperparameters);
void RecordStep(const worker::v1::StepRequest& request, const worker::v1::StepStatistics& statistics,
                const Runner& runner, const model::Hyperparameters& hyperparameters);
// A step that was computed before it was asked for, if it was.
void RecordStepAhead(bool asked_for);
void RecordStepFailure(absl::StatusCode code);
void RecordPlacementEpoch(uint64_t epoch);
// `neurons` became hot with this epoch, by copying `bytes` bytes.
void RecordMoves(uint64_t epoch, int64_t neurons, int64_t bytes);
// Rows of logits that went to the gateway through shared memory, and inside a message.
void RecordLogits(int64_t shared, int64_t inlined);
// "shm", "inline" or "none".
void RecordTransport(const std::string& transport);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_SERVICE_STEP_METRICS_H_
