#ifndef ISOTHERM_GPU_WORKER_GRAPH_PIPELINE_H_
#define ISOTHERM_GPU_WORKER_GRAPH_PIPELINE_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu_worker/graph/decoder.h"

namespace isotherm::gpu_worker {

// A device and the layers it shall hold; the device outlives the pipeline.
struct Stage {
  Device* device = nullptr;
  LayerRange layers;
};

// A model on one or more devices, each of which holds layers in a row. A pass goes through the devices in
// their order; only the hidden states of its rows go from one to the next. Thread-compatible.
class Pipeline {
 public:
  using MakePredictor = std::function<absl::StatusOr<std::unique_ptr<Predictor>>(const Stage& stage)>;
  // The stages hold all layers in their order. `progress`: see Decoder::Load.
  static absl::StatusOr<std::unique_ptr<Pipeline>> Load(const model::Model& model,
                                                        const RunnerOptions& options,
                                                        const neuron::Placement& placement,
                                                        const std::vector<Stage>& stages,
                                                        const MakePredictor& make_predictor,
                                                        const std::function<absl::Status()>& progress);

  // Runs a pass to its end. The first failure of any device; the results are then void.
  absl::Status Run(const Pass& pass);
  // Of the pass that ran last: logits [count, vocabulary] from output row `first` on, and the
  // log-probabilities of its targets [count].
  absl::Status ReadLogits(int64_t first, int64_t count, float* out);
  absl::Status ReadLogProbabilities(int64_t count, float* out);

  // What Device says of the same name, of all devices.
  int64_t most_micro_batches() const;
  void SetChannel(exchange::Channel* channel, uint64_t placement_epoch);
  PassStatistics TakeStatistics();
  FiringCounts TakeFirings();
  // By reading the head.
  double MeasureReadBandwidth();

  // Of the predictors, which are of one kind; a remote one may be lost to some of the devices only.
  std::string predictor_name() const;
  bool exact() const;
  bool yields_gate() const { return decoders_.front()->predictor().yields_gate(); }

  const std::vector<Stage>& stages() const { return stages_; }
  // The hot neurons of a stage's layers.
  std::vector<HotLayer> HotLayers(size_t stage) const { return decoders_[stage]->HotLayers(); }

  // The pass that runs next fails that way, on the last device.
  void BreakNext(DeviceFault fault) { fault_ = fault; }

 private:
  Pipeline(std::vector<Stage> stages, int64_t vocabulary)
      : stages_(std::move(stages)), vocabulary_(vocabulary) {}

  const std::vector<Stage> stages_;
  const int64_t vocabulary_;
  std::vector<std::unique_ptr<Decoder>> decoders_;  // one for each stage
  std::optional<DeviceFault> fault_;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_GRAPH_PIPELINE_H_
