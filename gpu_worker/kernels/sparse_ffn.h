#ifndef ISOTHERM_GPU_WORKER_KERNELS_SPARSE_FFN_H_
#define ISOTHERM_GPU_WORKER_KERNELS_SPARSE_FFN_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "common/kernels/packed_row.h"

// What a device computes of a sparse FFN, gate-first: gate rows where some row's mask asks for them, the
// other two rows of a neuron where its activation is not zero. All sums are in a fixed order, and a row's
// result does not depend on the others.
namespace isotherm::gpu_worker::cuda {

// `count` neurons of a layer of `ffn`: those of ids, whose bundles lie in that order, or without ids the
// first `of_64` of every 64 neurons of the layer, whose bundles are all there.
struct NeuronSet {
  const uint8_t* bundles = nullptr;
  int64_t bundle_bytes = 0;
  const int32_t* ids = nullptr;
  int of_64 = 64;
  int64_t count = 0;
  int64_t hidden = 0;
  int64_t ffn = 0;
  // Device counters [ffn], by id: one more for each token row in which the neuron fires. Null: not counted.
  unsigned* firings = nullptr;
  const uint64_t* without = nullptr;  // null, or neurons that do not belong to the set [MaskWords(ffn)]

  NeuronSet Slice(int64_t first, int64_t size) const {
    NeuronSet slice = *this;
    slice.bundles += first * bundle_bytes;
    slice.ids += first;
    slice.count = size;
    return slice;
  }
};

// One of a bundle's rows, and where its bias lies (0: none); in bytes.
struct BundleRow {
  kernels::WeightType type;
  int64_t offset = 0;
  int64_t bias_offset = 0;
};

// What makes pre-activations activations (model::Activation).
enum class GateFunction { kThreshold, kSquaredRelu, kSilu, kGelu };
struct GateActivation {
  GateFunction function = GateFunction::kThreshold;
  float threshold = 0;       // kThreshold: gates at or below it are zero
  bool gated = true;         // an up row follows
  bool double_relu = false;  // and its products below zero count as zero
};

// Device counters, added to: mask bits set for these neurons, and of those the ones that fired.
struct FfnCounters {
  unsigned long long computed;
  unsigned long long active;
};

// Token rows and what is wanted from them.
struct FfnRows {
  const float* x = nullptr;         // [rows, hidden]
  const uint64_t* masks = nullptr;  // [rows, MaskWords(ffn)]
  int64_t rows = 0;
};

// Neurons of a sparse FFN, and what becomes of them.
struct FfnPart {
  NeuronSet neurons;
  float* values = nullptr;  // activations, from one operator to the next [rows, neurons.count]
  FfnCounters* counters = nullptr;
};
// One launch computes both: the hot neurons, and cold ones whose bundles are in host memory, which keep the
// bus busy meanwhile. Either may have none.
struct FfnParts {
  FfnPart bus, hot;
};

// values = activation(gate rows . x + bias) where the mask asks for it, zero elsewhere; times up rows . x, if
// `up` is not null, where that is not zero. Both rows are of one type.
cudaError_t GateRows(const FfnParts& parts, const BundleRow& gate, const BundleRow* up, const FfnRows& rows,
                     const GateActivation& activation, cudaStream_t stream);
// Products that exist already: a token row's lie `stride` values after the one before, a neuron's at its id
// where `by_id`, else at its place among the neurons. The bias at bias_offset of the bundle (0: none) is yet
// to be added.
struct GateSource {
  const float* products = nullptr;
  int64_t stride = 0;
  bool by_id = false;
  int64_t bias_offset = 0;
};
// The same from such products.
cudaError_t ActivateGates(const FfnParts& parts, const GateSource& gates, const FfnRows& rows,
                          const GateActivation& activation, cudaStream_t stream);

// values *= up rows . x where they are not zero.
cudaError_t MultiplyByUpRows(const FfnParts& parts, const BundleRow& up, const FfnRows& rows,
                             const GateActivation& activation, cudaStream_t stream);
// F32 values of `partials` for up to `rows` rows of a layer of so many neurons.
int64_t DownPartialFloats(int64_t ffn, int64_t hidden, int64_t rows);
// y [rows, hidden] = sum over the neurons of values * down row.
cudaError_t DownRows(const FfnParts& parts, const BundleRow& down, int64_t rows, float* partials, float* y,
                     cudaStream_t stream);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_SPARSE_FFN_H_
