#ifndef ISOTHERM_GPU_WORKER_GRAPH_MEMORY_PLAN_H_
#define ISOTHERM_GPU_WORKER_GRAPH_MEMORY_PLAN_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/kernels/ops.h"
#include "common/model/model.h"
#include "common/model/profile.h"
#include "common/neuron/placement.h"
#include "gpu_worker/device/device.h"
#include "gpu_worker/device/layer_range.h"
#include "gpu_worker/predict/predictor.h"

namespace isotherm::gpu_worker {

// A device that is to fail in its `pass`th pass, counted from one.
struct PlannedFault {
  DeviceFault fault = DeviceFault::kLost;
  int64_t pass = 0;
};

// What the operator of the worker decides.
struct RunnerOptions {
  // Most tokens of a sequence.
  int64_t context = 0;
  kernels::KvType kv_type = kernels::KvType::kF16;
  // Token rows the KV cache holds, all sequences together.
  int64_t kv_tokens = 0;
  int64_t kv_block_size = 16;
  int64_t max_prefill_rows = 256;
  int64_t max_decode_rows = 64;
  PredictorKind predictor = PredictorKind::kAll;
  float predictor_threshold_shift = 0;
  // Bytes of device memory for everything, a like part on each device; absent: all neurons hot.
  std::optional<int64_t> budget_bytes;
  // Room on each device for neurons on their way into the hot set (HotSet); 0: it stays as it is.
  int64_t hot_staging_bytes = 0;
  // Micro-batches of a decode pass, see MicroBatchPolicy; 0: by measurement.
  int64_t micro_batches = 0;
  // For tests.
  std::optional<PlannedFault> planned_fault;

  int64_t max_rows() const { return std::max(max_prefill_rows, max_decode_rows); }
  int64_t kv_blocks() const { return kv_tokens / kv_block_size; }
};

// Rows of logits kept at once while log-probabilities are computed.
inline constexpr int64_t kScoreRows = 64;

// What one device holds: its layers, and its memory in the order in which the budget pays for it; hot neurons
// get what is left.
struct StagePlan {
  LayerRange layers;
  std::array<int64_t, kMemoryPurposes> bytes = {};
  bool offloaded = false;  // to the CPU: the budget does not pay for it, and no neuron of its layers is hot
  int64_t total() const;
};

struct MemoryPlan {
  std::vector<StagePlan> stages;  // in the order of the layers
  neuron::Plan neurons;
  // Of all devices but the one offloaded to.
  int64_t bytes(MemoryPurpose purpose) const;
  int64_t total() const;
  // For people: bytes by purpose, hot share and coverage, and the devices' layers.
  std::string ToString(const model::Model& model) const;
};

// What says which neurons shall be hot.
struct PlacementSource {
  std::optional<model::Profile> profile;       // absent: nobody knows how often each fires
  std::optional<neuron::Placement> placement;  // to be taken as it is
};

// What a device says of its memory.
struct DeviceMemoryTraits {
  int64_t own_bytes = 0;  // Device::OwnBytes
  bool embeds_from_host = false;
  int64_t allocation_unit = 1;  // Device::allocation_unit
};

// What a model may be divided over.
struct PlanDevices {
  // In the order in which they get the layers; at least one.
  std::vector<DeviceMemoryTraits> devices = {{}};
  // Present: the CPU, which takes the first layers where the dense parts of all of them do not fit the
  // budget, as few as will do.
  std::optional<DeviceMemoryTraits> offload_to;
};

// Divides the layers over the devices so that they hold about as much each with every neuron hot, and then
// each device's part of the budget. Depends on the arguments alone, so that every start makes the same plan
// of the same files and flags. InvalidArgument for more devices than layers. ResourceExhausted, naming the
// least budget that would do, when not even the dense parts or the hot neurons of source.placement fit.
absl::StatusOr<MemoryPlan> PlanMemory(const model::Model& model, const RunnerOptions& options,
                                      const PlacementSource& source, const PlanDevices& on = {});

// Predicted for a decode step of one sequence: what it reads over the read bandwidth, the hot and the cold
// half of a layer side by side, and the exchanges.
absl::StatusOr<double> PredictStepSeconds(const model::Model& model,
                                          const std::optional<model::Profile>& profile,
                                          const neuron::Placement& placement, double read_bandwidth);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_GRAPH_MEMORY_PLAN_H_
