#ifndef ISOTHERM_GPU_WORKER_GRAPH_DECODER_H_
#define ISOTHERM_GPU_WORKER_GRAPH_DECODER_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/model.h"
#include "common/neuron/placement.h"
#include "gpu_worker/device/device.h"
#include "gpu_worker/device/layer_range.h"
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
  // Groups of rows that go through the layers in turn: while the CPU worker computes the cold neurons of one,
  // the device computes another. At most as many as the devices take.
  int64_t micro_batches = 1;
};

// Layers of a decoder on a device, all of them or some in a row: weights, KV cache, workspace and the order
// of operators. The first layer's decoder has the embedding, the last one's the head. Thread-compatible.
class Decoder {
 public:
  // The predictor is for these layers. `progress` is called after each; an error ends the loading with it.
  static absl::StatusOr<std::unique_ptr<Decoder>> Load(const model::Model& model,
                                                       const RunnerOptions& options,
                                                       const neuron::Placement& placement, LayerRange layers,
                                                       std::unique_ptr<Predictor> predictor, Device& device,
                                                       const std::function<absl::Status()>& progress);

  // Takes the hidden states of `rows` rows over from the decoder of the layers before these, whose pass is
  // over.
  absl::Status Continue(const Decoder& before, int64_t rows);
  // Enqueues the pass on the device, between its BeginPass and EndPass.
  void Enqueue(const Pass& pass);

  // Device memory of the last layer's decoder; valid after EndPass until the next pass.
  const float* logits() const { return logits_.as<float>(); }  // [logit_rows, vocabulary]
  const float* log_probabilities() const { return log_probabilities_.as<float>(); }  // [targets]

  const Predictor& predictor() const { return *predictor_; }
  // The head's matrix, which every pass that wants logits reads; of the last layer's decoder.
  const Buffer& head() const { return output_.buffer; }
  LayerRange layers() const { return range_; }
  // The hot neurons of each of the layers, for whoever swaps them between passes; valid while this lives.
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

  Decoder(const model::Hyperparameters& hyperparameters, LayerRange layers, Device& device)
      : h_(hyperparameters), range_(layers), device_(device), layers_(hyperparameters.layers) {}
  bool is_first() const { return range_.begin == 0; }
  bool is_last() const { return range_.end == h_.layers; }
  absl::Status LoadLayer(const model::Model& model, int64_t index, const RunnerOptions& options,
                         const neuron::Placement& placement);
  absl::Status LoadHotNeurons(const model::Model& model, int64_t index, const neuron::Placement& placement,
                              LayerWeights& layer);
  absl::Status LoadEmbedding(const model::Model& model);
  absl::Status LoadHead(const model::Model& model);
  absl::Status LoadAttention(const model::Model& model, int64_t index, const RunnerOptions& options,
                             LayerWeights& layer);
  absl::Status LoadRope(const model::Model& model);
  absl::Status AllocateWorkspace(const RunnerOptions& options);
  void EnqueueLayers(const std::vector<RowRange>& batches);
  // `alone`: the rows are all there are.
  FfnCall BeginSequentialLayer(int64_t index, RowRange rows, bool alone);
  void EndSequentialLayer(const FfnCall& call, RowRange rows);
  FfnCall BeginParallelLayer(int64_t index, RowRange rows, bool alone);
  void EndParallelLayer(const FfnCall& call, RowRange rows);
  void EnqueueAttention(const LayerWeights& layer, RowRange rows);
  FfnCall EnqueueColdFfn(int64_t index, RowRange rows);
  // Whether what the layer will want is predicted while the layer before it is computed.
  bool ExpectsCold(int64_t index, int64_t rows) const;
  void PredictExpectation(int64_t index, int64_t rows);
  void TellExpectation(int64_t index, int64_t rows);
  void EnqueueHead(const Pass& pass);

  const model::Hyperparameters h_;
  const LayerRange range_;
  Device& device_;
  std::unique_ptr<Predictor> predictor_;
  std::vector<LayerWeights> layers_;  // by the model's numbers; those outside the range are empty
  DeviceMatrix embedding_, positions_, output_;
  DeviceNorm output_norm_;
  Buffer inverse_frequency_;
  kernels::RopeTable rope_;
  // Workspace, named for what it holds. `normed_` is attention's input, then its output.
  Buffer residual_, normed_, q_, k_, v_, attention_, ffn_input_, ffn_, scores_, masks_, gathered_, logits_,
      log_probabilities_, expected_input_, expected_scores_, expected_masks_;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_GRAPH_DECODER_H_
