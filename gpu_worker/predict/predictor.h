#ifndef ISOTHERM_GPU_WORKER_PREDICT_PREDICTOR_H_
#define ISOTHERM_GPU_WORKER_PREDICT_PREDICTOR_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/device/device.h"
#include "gpu_worker/device/layer_range.h"

namespace isotherm::gpu_worker {

// Most rows of a pass whose next layer's neurons are announced to the CPU worker.
inline constexpr int64_t kLookAheadRows = 16;

// What a predictor writes for the rows of a pass, on the device.
struct Prediction {
  uint64_t* masks = nullptr;  // [rows, MaskWords(ffn)]
  // Scratch [rows, ffn]. Holds the pre-activations (of gate, ungated of up) afterwards where
  // Predictor::yields_gate().
  float* scores = nullptr;
  // Made beside another prediction, of kLookAheadRows rows at most: has scratch of its own.
  bool ahead = false;
};

// Tells which neurons of a layer to compute. Enqueues device operators and nothing else, so that a CUDA graph
// can hold it; the remote kind alone has to leave the device (Device::MaskFromHost).
class Predictor {
 public:
  virtual ~Predictor() = default;
  virtual std::string name() const = 0;
  // Every neuron that fires is in the masks.
  virtual bool exact() const = 0;
  // Compute up and down whatever the gate says.
  virtual bool dense() const { return false; }
  virtual bool yields_gate() const { return false; }
  // Whether it may be asked a layer early, too, for what is only an expectation.
  virtual bool looks_ahead() const { return true; }
  // `residual` is the hidden state before the FFN norm (with parallel attention the layer's input),
  // `ffn_input` after it; [rows, hidden] both.
  virtual void Enqueue(Device& device, int64_t layer, const float* residual, const float* ffn_input,
                       int64_t rows, const Prediction& out) = 0;
};

enum class PredictorKind { kAll, kGate, kSketch, kLowRank };
absl::StatusOr<PredictorKind> ParsePredictorKind(const std::string& name);
const char* PredictorKindName(PredictorKind kind);

struct PredictorOptions {
  PredictorKind kind = PredictorKind::kAll;
  // Added to the threshold below which a neuron is skipped: negative keeps more. Kinds `sketch` and
  // `lowrank`.
  float threshold_shift = 0;
  int64_t max_rows = 0;
};

// Bytes the kind keeps on the device for these layers.
absl::StatusOr<int64_t> PredictorBytes(const model::Model& model, const PredictorOptions& options,
                                       LayerRange layers);

// A predictor for these layers, with its weights built on the device from the model file. FailedPrecondition
// when the model has none of that kind (a dense model, or no low-rank tensors).
absl::StatusOr<std::unique_ptr<Predictor>> MakePredictor(const model::Model& model,
                                                         const PredictorOptions& options, LayerRange layers,
                                                         Device& device);

// The kind to use when none is named: `lowrank` where the file brings one, `sketch` for other sparse models,
// else `all`.
PredictorKind DefaultPredictorKind(const model::Model& model);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_PREDICT_PREDICTOR_H_
