#include "gpu_worker/predict/predictor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/kernels/sketch.h"
#include "common/neuron/bundle.h"
#include "gpu_worker/device/matrix.h"

namespace isotherm::gpu_worker {
namespace {

using model::Activation;

// The pre-activation above which a neuron fires (with dReLU: above which it may).
float FiringThreshold(const model::Hyperparameters& hyperparameters) {
  return hyperparameters.activation == Activation::kFatRelu ? hyperparameters.activation_threshold : 0.0f;
}

class AllPredictor final : public Predictor {
 public:
  std::string name() const override { return "all"; }
  bool exact() const override { return true; }
  bool dense() const override { return true; }
  bool looks_ahead() const override { return false; }
  void Enqueue(Device& device, int64_t, const float*, const float*, int64_t rows,
               const Prediction& out) override {
    device.MaskAll(rows, out.masks);
  }
};

// The model's own gate matrix for every neuron, hot and cold (ungated: its up matrix and bias): exact, and
// cold neurons then cost only the rows after it.
class GatePredictor final : public Predictor {
 public:
  GatePredictor(std::vector<DeviceProjection> gates, float threshold)
      : gates_(std::move(gates)), threshold_(threshold) {}
  std::string name() const override { return "gate"; }
  bool exact() const override { return true; }
  bool yields_gate() const override { return true; }
  void Enqueue(Device& device, int64_t layer, const float*, const float* ffn_input, int64_t rows,
               const Prediction& out) override {
    const DeviceProjection& gate = gates_[layer];
    device.MatMul(gate.weight.view, gate.bias.as<float>(), ffn_input, rows, out.scores);
    device.MaskFromScores(out.scores, nullptr, threshold_, /*strict=*/true, rows, out.masks);
  }

 private:
  std::vector<DeviceProjection> gates_;
  float threshold_;
};

// Gate rows (ungated: up rows) at 4 bits a weight, with the up bias where there is one.
class SketchPredictor final : public Predictor {
 public:
  struct LayerSketch {
    Buffer rows, bias;
  };

  SketchPredictor(std::vector<LayerSketch> sketches, float threshold)
      : sketches_(std::move(sketches)), threshold_(threshold) {}
  std::string name() const override { return "sketch"; }
  bool exact() const override { return false; }
  void Enqueue(Device& device, int64_t layer, const float*, const float* ffn_input, int64_t rows,
               const Prediction& out) override {
    const LayerSketch& sketch = sketches_[layer];
    device.SketchScores(sketch.rows.data(), ffn_input, rows, out.scores);
    device.MaskFromScores(out.scores, sketch.bias.as<float>(), threshold_, /*strict=*/false, rows, out.masks);
  }

 private:
  std::vector<LayerSketch> sketches_;
  float threshold_;
};

// score = b . f(a . input) + bias with f = relu (PowerInfer's form) or the identity.
class LowRankPredictor final : public Predictor {
 public:
  struct LayerWeights {
    DeviceMatrix a, b;
    Buffer bias;
    bool relu_between = false;
    bool reads_residual = false;
    float threshold = 0;
  };

  LowRankPredictor(std::vector<LayerWeights> layers, Buffer hidden, Buffer hidden_ahead)
      : layers_(std::move(layers)), hidden_(std::move(hidden)), hidden_ahead_(std::move(hidden_ahead)) {}
  std::string name() const override { return "lowrank"; }
  bool exact() const override { return false; }
  void Enqueue(Device& device, int64_t layer, const float* residual, const float* ffn_input, int64_t rows,
               const Prediction& out) override {
    const LayerWeights& weights = layers_[layer];
    float* hidden = (out.ahead ? hidden_ahead_ : hidden_).as<float>();
    device.MatMul(weights.a.view, nullptr, weights.reads_residual ? residual : ffn_input, rows, hidden);
    if (weights.relu_between) device.Relu(hidden, rows * weights.a.view.rows);
    device.MatMul(weights.b.view, nullptr, hidden, rows, out.scores);
    device.MaskFromScores(out.scores, weights.bias.as<float>(), weights.threshold, /*strict=*/false, rows,
                          out.masks);
  }

 private:
  std::vector<LayerWeights> layers_;
  Buffer hidden_, hidden_ahead_;
};

absl::Status RequireSparse(const model::Model& model, const char* kind) {
  if (model.hyperparameters().sparse()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("predictor '", kind, "' needs a model whose FFN neurons can be inactive; '",
                   model.DisplayName(), "' has activation ",
                   model::ActivationName(model.hyperparameters().activation), ". Use --predictor=all"));
}

absl::StatusOr<std::unique_ptr<Predictor>> MakeGate(const model::Model& model, LayerRange layers,
                                                    Device& device) {
  ISOTHERM_RETURN_IF_ERROR(RequireSparse(model, "gate"));
  std::vector<DeviceProjection> gates(model.layers().size());
  for (int64_t l = layers.begin; l < layers.end; ++l) {
    const model::Layer& layer = model.layers()[l];
    ISOTHERM_ASSIGN_OR_RETURN(gates[l], LoadProjection(model, {layer.activated(), layer.up_bias},
                                                       MemoryPurpose::kPredictor, device));
  }
  return std::make_unique<GatePredictor>(std::move(gates), FiringThreshold(model.hyperparameters()));
}

absl::StatusOr<Buffer> SketchRows(const model::Model& model, const model::TensorRef& matrix, Device& device) {
  const int64_t hidden = matrix.columns;
  const int64_t stride = kernels::SketchRowBytes(hidden);
  ISOTHERM_ASSIGN_OR_RETURN(const kernels::WeightType type, neuron::PackedWeightType(*matrix.info));
  const int64_t file_row = kernels::FileRowBytes(type, hidden);
  const uint8_t* source = model.file().Data(*matrix.info).data();
  const int64_t bytes = matrix.rows * stride;
  ISOTHERM_ASSIGN_OR_RETURN(Buffer sketch, device.Allocate(bytes, MemoryPurpose::kPredictor));
  ISOTHERM_RETURN_IF_ERROR(device.Write(sketch, 0, bytes, [&](uint8_t* out) {
    device.loader_pool().ParallelFor(matrix.rows, 64, [&](int64_t begin, int64_t end, int) {
      std::vector<float> row(hidden);
      for (int64_t j = begin; j < end; ++j) {
        kernels::UnpackFileRow(type, source + j * file_row, hidden, row.data());
        kernels::SketchRow(row.data(), hidden, out + j * stride);
      }
    });
  }));
  return sketch;
}

absl::StatusOr<std::unique_ptr<Predictor>> MakeSketch(const model::Model& model,
                                                      const PredictorOptions& options, LayerRange layers,
                                                      Device& device) {
  ISOTHERM_RETURN_IF_ERROR(RequireSparse(model, "sketch"));
  std::vector<SketchPredictor::LayerSketch> sketches(model.layers().size());
  model.file().PrefetchPages(*model.layers()[layers.begin].activated().info);
  for (int64_t l = layers.begin; l < layers.end; ++l) {
    const model::Layer& layer = model.layers()[l];
    if (l + 1 < layers.end) model.file().PrefetchPages(*model.layers()[l + 1].activated().info);
    SketchPredictor::LayerSketch& sketch = sketches[l];
    ISOTHERM_ASSIGN_OR_RETURN(sketch.rows, SketchRows(model, layer.activated(), device));
    if (layer.up_bias.present()) {
      ISOTHERM_ASSIGN_OR_RETURN(sketch.bias,
                                LoadVector(model, layer.up_bias, MemoryPurpose::kPredictor, device));
    }
  }
  return std::make_unique<SketchPredictor>(
      std::move(sketches), FiringThreshold(model.hyperparameters()) + options.threshold_shift);
}

absl::StatusOr<std::unique_ptr<Predictor>> MakeLowRank(const model::Model& model,
                                                       const PredictorOptions& options, LayerRange layers,
                                                       Device& device) {
  ISOTHERM_RETURN_IF_ERROR(RequireSparse(model, "lowrank"));
  std::vector<LowRankPredictor::LayerWeights> loaded(model.layers().size());
  int64_t max_rank = 0;
  for (int64_t l = layers.begin; l < layers.end; ++l) {
    const model::Layer& layer = model.layers()[l];
    if (!layer.predictor.has_value()) {
      return absl::FailedPreconditionError(absl::StrCat("predictor 'lowrank': '", model.DisplayName(),
                                                        "' has no low-rank tensors for layer ", l,
                                                        ". Use --predictor=sketch, which needs none"));
    }
    LowRankPredictor::LayerWeights& weights = loaded[l];
    ISOTHERM_ASSIGN_OR_RETURN(weights.a,
                              LoadMatrix(model, layer.predictor->a, MemoryPurpose::kPredictor, device));
    ISOTHERM_ASSIGN_OR_RETURN(weights.b,
                              LoadMatrix(model, layer.predictor->b, MemoryPurpose::kPredictor, device));
    if (layer.predictor->bias.present()) {
      ISOTHERM_ASSIGN_OR_RETURN(weights.bias,
                                LoadVector(model, layer.predictor->bias, MemoryPurpose::kPredictor, device));
    }
    weights.relu_between = layer.predictor->relu_between;
    weights.reads_residual = layer.predictor->reads_residual;
    weights.threshold = layer.predictor->threshold + options.threshold_shift;
    max_rank = std::max(max_rank, weights.a.view.rows);
  }
  const auto make_hidden = [&](int64_t rows) {
    return device.Allocate(rows * max_rank * static_cast<int64_t>(sizeof(float)), MemoryPurpose::kPredictor);
  };
  ISOTHERM_ASSIGN_OR_RETURN(Buffer hidden, make_hidden(options.max_rows));
  ISOTHERM_ASSIGN_OR_RETURN(Buffer hidden_ahead, make_hidden(kLookAheadRows));
  return std::make_unique<LowRankPredictor>(std::move(loaded), std::move(hidden), std::move(hidden_ahead));
}

}  // namespace

absl::StatusOr<PredictorKind> ParsePredictorKind(const std::string& name) {
  for (PredictorKind kind :
       {PredictorKind::kAll, PredictorKind::kGate, PredictorKind::kSketch, PredictorKind::kLowRank}) {
    if (name == PredictorKindName(kind)) return kind;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown predictor '", name, "'; the kinds are all, gate, sketch and lowrank"));
}

const char* PredictorKindName(PredictorKind kind) {
  switch (kind) {
    case PredictorKind::kAll:
      return "all";
    case PredictorKind::kGate:
      return "gate";
    case PredictorKind::kSketch:
      return "sketch";
    case PredictorKind::kLowRank:
      return "lowrank";
  }
  return "unknown";
}

absl::StatusOr<int64_t> PredictorBytes(const model::Model& model, const PredictorOptions& options,
                                       LayerRange layers) {
  const model::Hyperparameters& h = model.hyperparameters();
  int64_t bytes = 0;
  int64_t max_rank = 0;
  for (int64_t l = layers.begin; l < layers.end; ++l) {
    const model::Layer& layer = model.layers()[l];
    switch (options.kind) {
      case PredictorKind::kAll:
        break;
      case PredictorKind::kGate:
        bytes += DeviceProjectionBytes({layer.activated(), layer.up_bias});
        break;
      case PredictorKind::kSketch:
        bytes += h.ffn * kernels::SketchRowBytes(h.hidden) + DeviceVectorBytes(layer.up_bias);
        break;
      case PredictorKind::kLowRank:
        if (!layer.predictor.has_value()) continue;  // MakePredictor refuses it with the reason
        bytes += DeviceMatrixBytes(layer.predictor->a) + DeviceMatrixBytes(layer.predictor->b);
        bytes += DeviceVectorBytes(layer.predictor->bias);
        max_rank = std::max(max_rank, layer.predictor->a.rows);
        break;
    }
  }
  return bytes + (options.max_rows + kLookAheadRows) * max_rank * static_cast<int64_t>(sizeof(float));
}

absl::StatusOr<std::unique_ptr<Predictor>> MakePredictor(const model::Model& model,
                                                         const PredictorOptions& options, LayerRange layers,
                                                         Device& device) {
  switch (options.kind) {
    case PredictorKind::kAll:
      return std::make_unique<AllPredictor>();
    case PredictorKind::kGate:
      return MakeGate(model, layers, device);
    case PredictorKind::kSketch:
      return MakeSketch(model, options, layers, device);
    case PredictorKind::kLowRank:
      return MakeLowRank(model, options, layers, device);
  }
  return absl::InternalError("unknown predictor kind");
}

PredictorKind DefaultPredictorKind(const model::Model& model) {
  if (!model.hyperparameters().sparse()) return PredictorKind::kAll;
  for (const model::Layer& layer : model.layers()) {
    if (!layer.predictor.has_value()) return PredictorKind::kSketch;
  }
  return PredictorKind::kLowRank;
}

}  // namespace isotherm::gpu_worker
