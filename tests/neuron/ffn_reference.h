#ifndef ISOTHERM_TESTS_NEURON_FFN_REFERENCE_H_
#define ISOTHERM_TESTS_NEURON_FFN_REFERENCE_H_

#include <cstdint>
#include <random>
#include <vector>

#include "common/neuron/ffn.h"

namespace isotherm::neuron {

// The values that one layer's packed rows hold, each [ffn, hidden]. Ungated: `gate` has the up rows, as in a
// bundle, and `up` is empty.
struct LayerWeights {
  int64_t hidden = 0;
  kernels::WeightType type = kernels::WeightType::kF32;
  std::vector<float> gate, up, down;
  std::vector<float> bias;  // [ffn], or empty

  bool gated() const { return !up.empty(); }
  float Bias(int64_t neuron) const { return bias.empty() ? 0.0f : bias[neuron]; }
  const float* Gate(int64_t neuron) const { return &gate[neuron * hidden]; }
  const float* Up(int64_t neuron) const { return &up[neuron * hidden]; }
  const float* Down(int64_t neuron) const { return &down[neuron * hidden]; }
};

enum class FfnForm { kGated, kUngated, kUngatedWithBias };

// Random weights and their packed bundles.
class RandomLayer {
 public:
  RandomLayer(kernels::WeightType type, int64_t hidden, int64_t ffn, uint32_t seed,
              FfnForm form = FfnForm::kGated);

  int64_t hidden() const { return weights_.hidden; }
  int64_t ffn() const { return ffn_; }
  // Every neuron; or bundles of the listed neurons alone, which the caller keeps alive.
  BundleView All() const { return {Bundles(), &layout_, nullptr, ffn_}; }
  BundleView Only(const std::vector<int32_t>& neurons, std::vector<uint8_t>* storage) const;

  const BundleLayout& layout() const { return layout_; }
  const uint8_t* Bundles() const;
  const LayerWeights& weights() const { return weights_; }

 private:
  void MakeLayout(FfnForm form);
  std::vector<float> PackRandomRow(std::mt19937& random, uint8_t* packed) const;

  kernels::WeightType type_;
  int64_t ffn_;
  BundleLayout layout_;
  std::vector<uint8_t> storage_;
  LayerWeights weights_;
};

// F64, neuron by neuron, with the bound the F32 result must keep.
struct ReferenceResult {
  std::vector<double> y;      // [rows, hidden]
  std::vector<double> bound;  // [rows, hidden]
  FfnStatistics statistics;
  // Neurons so close to the activation's edge that rounding may decide whether they are active.
  int64_t undecided = 0;
};
// `neurons` are those of the view.
ReferenceResult Reference(const LayerWeights& layer, const std::vector<int32_t>& neurons,
                          const FfnRequest& request);

// [rows, hidden], normally distributed.
std::vector<float> RandomInput(int64_t rows, int64_t hidden, uint32_t seed);
// [rows, MaskWords(ffn)], in which each neuron is wanted with this probability.
std::vector<uint64_t> RandomMasks(int64_t rows, int64_t ffn, double share, uint32_t seed);

// First bundle address on a 64-byte boundary inside `storage`, which must be 63 bytes longer than needed.
uint8_t* AlignTo64(std::vector<uint8_t>& storage);

}  // namespace isotherm::neuron

#endif  // ISOTHERM_TESTS_NEURON_FFN_REFERENCE_H_
