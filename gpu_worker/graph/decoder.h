#ifndef ISOTHERM_GPU_WORKER_GRAPH_DECODER_H_
#define ISOTHERM_GPU_WORKER_GRAPH_DECODER_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/model.h"
#include "common/neuron/placement.h"
#include "gpu_worker/device/device.h"
#include "gpu_worker/device/matrix.h"
#include "gpu_worker/graph/memory_plan.h"
#include "gpu_worker/predict/predictor.h"

namespace isotherm::gpu_worker {

// A pass and what is wanted from it. `input.output_rows` lists the rows whose logits are wanted first, then
// those that are only scored against a target.
struct Pass {
  PassInput input;
  int64_t logit_rows = 0;
  std::vector<uint32_t> targets;  // one for each output row after the first logit_rows
};

// The layers of a decoder on a device: weights, KV cache, workspace and the order of operators.
// Thread-compatible.
class Decoder {
 public:
  // `progress` is called after each layer; an error ends the loading with it.
  static absl::StatusOr<std::unique_ptr<Decoder>> Load(const model::Model& model,
                                                       const RunnerOptions& options,
                                                       const neuron::Placement& placement,
                                                       std::unique_ptr<Predictor> predictor, Device& device,
                                                       const std::function<absl::Status()>& progress);

  // Enqueues the pass on the device, between its BeginPass and EndPass.
  void Enqueue(const Pass& pass);

  // Device memory; valid after EndPass until the next pass.
  const float* logits() const { return logits_.as<float>(); }  // [logit_rows, vocabulary]
  const float* log_probabilities() const { return log_probabilities_.as<float>(); }  // [targets]

  const Predictor& predictor() const { return *predictor_; }
  // The head's matrix, which every pass that wants logits reads.
  const Buffer& head() const { return output_.buffer; }
  // The hot neurons of every layer, for whoever swaps them between passes; valid while this lives.
  std::vector<HotLayer> HotLayers() const;

 private:
  struct LayerWeights {
    DeviceNorm attention_norm, ffn_norm;
    DeviceProjection q, k, v, attention_output;
    Buffer down_bias;
    Buffer kv;
    kernels::PagedKv kv_view;
    Buffer bundles, neuron_ids, hot_mask;
    HotLayer hot;
  };

  Decoder(const model::Hyperparameters& hyperparameters, Device& device)
      : h_(hyperparameters), device_(device) {}
  absl::Status LoadLayer(const model::Model& model, int64_t index, const RunnerOptions& options,
                         const neuron::Placement& placement);
  absl::Status LoadHotNeurons(const model::Model& model, int64_t index, const neuron::Placement& placement,
                              LayerWeights& layer);
  absl::Status LoadHead(const model::Model& model);
  absl::Status LoadAttention(const model::Model& model, int64_t index, const RunnerOptions& options,
                             LayerWeights& layer);
  absl::Status LoadRope(const model::Model& model);
  absl::Status AllocateWorkspace(const RunnerOptions& options);
  void EnqueueSequentialLayer(int64_t index, int64_t rows);
  void EnqueueParallelLayer(int64_t index, int64_t rows);
  void Project(const DeviceProjection& projection, const Buffer& x, int64_t rows, const Buffer& y);
  void EnqueueAttention(const LayerWeights& layer, int64_t rows);
  FfnCall EnqueueColdFfn(int64_t index, int64_t rows);
  void EnqueueHotFfn(const FfnCall& call);
  void EnqueueHead(const Pass& pass);

  const model::Hyperparameters h_;
  Device& device_;
  std::unique_ptr<Predictor> predictor_;
  std::vector<LayerWeights> layers_;
  DeviceMatrix embedding_, positions_, output_;
  DeviceNorm output_norm_;
  Buffer inverse_frequency_;
  kernels::RopeTable rope_;
  // Workspace, named for what it holds. `normed_` is attention's input, then its output.
  Buffer residual_, normed_, q_, k_, v_, attention_, ffn_input_, ffn_, scores_, masks_, gathered_, logits_,
      log_probabilities_;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_GRAPH_DECODER_H_
