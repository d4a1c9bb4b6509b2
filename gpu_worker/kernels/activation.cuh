#ifndef ISOTHERM_GPU_WORKER_KERNELS_ACTIVATION_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_ACTIVATION_CUH_

#include "common/neuron/mask.h"
#include "gpu_worker/kernels/sparse_ffn.h"

// What kernels of the FFN share about one neuron.
namespace isotherm::gpu_worker::cuda {

// NaN stays NaN, so that a broken input shows in the output instead of vanishing.
__device__ inline float Activate(const GateActivation& activation, float gate) {
  switch (activation.function) {
    case GateFunction::kThreshold:
      break;
    case GateFunction::kSquaredRelu:
      return gate <= 0 ? 0.0f : gate * gate;
    case GateFunction::kSilu:
      return gate / (1.0f + expf(-gate));
    case GateFunction::kGelu:
      return 0.5f * gate * (1.0f + erff(gate * 0.70710678f));
  }
  return gate <= activation.threshold ? 0.0f : gate;
}

__device__ inline float UpFactor(const GateActivation& activation, float up) {
  return activation.double_relu && up <= 0 ? 0.0f : up;
}

__device__ inline int32_t Id(const NeuronSet& neurons, int64_t k) {
  const auto place = static_cast<int32_t>(k);
  return neurons.ids == nullptr ? place / neurons.of_64 * 64 + place % neurons.of_64 : neurons.ids[place];
}

__device__ inline const uint8_t* Bundle(const NeuronSet& neurons, int64_t k) {
  return neurons.bundles + (neurons.ids == nullptr ? Id(neurons, k) : k) * neurons.bundle_bytes;
}

__device__ inline float Bias(const NeuronSet& neurons, int64_t k, int64_t bias_offset) {
  return bias_offset == 0 ? 0.0f : *reinterpret_cast<const float*>(Bundle(neurons, k) + bias_offset);
}

// Whether the token row's mask asks for neuron k of the set, if it belongs there.
__device__ inline bool Wanted(const NeuronSet& neurons, const uint64_t* masks, int64_t row, int64_t k) {
  const int32_t id = Id(neurons, k);
  uint64_t word = masks[row * neuron::MaskWords(neurons.ffn) + id / 64];
  if (neurons.without != nullptr) word &= ~neurons.without[id / 64];
  return word >> (id % 64) & 1;
}

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_ACTIVATION_CUH_
