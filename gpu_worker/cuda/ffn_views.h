#ifndef ISOTHERM_GPU_WORKER_CUDA_FFN_VIEWS_H_
#define ISOTHERM_GPU_WORKER_CUDA_FFN_VIEWS_H_

#include <cmath>
#include <cstdint>
#include <optional>

#include "gpu_worker/device/device.h"
#include "gpu_worker/kernels/sparse_ffn.h"

// An FFN in the words of the seam, as the kernels take it.
namespace isotherm::gpu_worker::cuda {

// `firings` is the layer's.
inline NeuronSet Neurons(const HotLayer& hot, const FfnParameters& ffn, unsigned* firings) {
  return {.bundles = hot.bundles,
          .bundle_bytes = hot.layout.bundle_bytes,
          .ids = hot.neuron_ids,
          .count = hot.count,
          .hidden = ffn.hidden,
          .ffn = ffn.ffn,
          .firings = firings};
}

// Of every 64 neurons the first so many, where they are cold, come over the bus. By default what leaves GPU
// and CPU worker ready at about the same time (docs/benchmarks.md, H200): a CPU worker reads weights of a
// byte and more as fast as memory allows, and takes longer to compute with smaller ones.
inline int BusNeuronsOf64(std::optional<double> share, const neuron::BundleLayout& layout) {
  const int64_t weights = (layout.gated ? 3 : 2) * layout.hidden;
  const double fitting = layout.bundle_bytes < weights ? 0.25 : 0.1875;
  return static_cast<int>(std::lround(64 * share.value_or(fitting)));
}

inline BundleRow GateRow(const neuron::BundleLayout& layout) {
  return {layout.gate_type, 0, layout.bias_offset};
}
inline BundleRow UpRow(const neuron::BundleLayout& layout) { return {layout.up_type, layout.up_offset}; }
inline BundleRow DownRow(const neuron::BundleLayout& layout) {
  return {layout.down_type, layout.down_offset};
}

inline GateActivation Activation(const FfnParameters& ffn, bool gated) {
  GateActivation activation;
  activation.gated = gated;
  switch (ffn.activation) {
    case model::Activation::kRelu:
      break;
    case model::Activation::kFatRelu:
      activation.threshold = ffn.activation_threshold;
      break;
    case model::Activation::kDRelu:
      activation.double_relu = true;
      break;
    case model::Activation::kRelu2:
      activation.function = GateFunction::kSquaredRelu;
      break;
    case model::Activation::kSilu:
      activation.function = GateFunction::kSilu;
      break;
    case model::Activation::kGelu:
      activation.function = GateFunction::kGelu;
      break;
  }
  return activation;
}

// The same row of all the neurons' bundles as a matrix.
inline kernels::WeightMatrix Matrix(const NeuronSet& neurons, const BundleRow& row) {
  return {neurons.bundles + row.offset, row.type, neurons.count, neurons.hidden, neurons.bundle_bytes};
}

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_CUDA_FFN_VIEWS_H_
