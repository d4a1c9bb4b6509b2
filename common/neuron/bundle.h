#ifndef ISOTHERM_COMMON_NEURON_BUNDLE_H_
#define ISOTHERM_COMMON_NEURON_BUNDLE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/thread_pool.h"
#include "common/kernels/packed_row.h"
#include "common/model/model.h"

namespace isotherm::neuron {

// Part of the exchange's opening message: both workers must pack alike.
inline constexpr uint32_t kBundleLayoutVersion = 2;

// The gate, up and down rows of one neuron side by side, each a packed row of `hidden` columns
// (common/kernels/packed_row.h). An ungated FFN has no gate row: its up row stands at 0 in the gate's place,
// with gate_type its type and nothing at up_offset, and the up bias, one F32 on a line of its own, follows it
// where the model has one. So the first row always is the one whose product goes through the activation.
struct BundleLayout {
  kernels::WeightType gate_type, up_type, down_type;
  int64_t hidden = 0;
  int64_t up_offset = 0;     // bytes; the gate row is at 0
  int64_t down_offset = 0;   // bytes
  int64_t bundle_bytes = 0;  // a multiple of 64
  bool gated = true;
  int64_t bias_offset = 0;  // bytes; 0: no bias

  const uint8_t* Gate(const uint8_t* bundle) const { return bundle; }
  const uint8_t* Up(const uint8_t* bundle) const { return bundle + up_offset; }
  const uint8_t* Down(const uint8_t* bundle) const { return bundle + down_offset; }
  // What is read where the first row says that the neuron fires.
  int64_t second_offset() const { return gated ? up_offset : down_offset; }
  // Of each row; the first one's with the bias.
  int64_t first_bytes() const { return second_offset(); }
  int64_t up_bytes() const { return gated ? down_offset - up_offset : 0; }
  int64_t down_bytes() const { return bundle_bytes - down_offset; }
  // What is added to the first row's product.
  float Bias(const uint8_t* bundle) const {
    return bias_offset == 0 ? 0.0f : *reinterpret_cast<const float*>(bundle + bias_offset);
  }
};

// The packed form of a file's tensor type; Unimplemented, naming the tensor, for types the kernels cannot
// read.
absl::StatusOr<kernels::WeightType> PackedWeightType(const gguf::TensorInfo& tensor);

// The layout a layer's tensors give. `down` keeps its type where its rows are neurons already
// (down_transposed) or where transposing is exact (F32, F16, BF16); a quantised [hidden, ffn] matrix becomes
// Q8_0 by neuron.
absl::StatusOr<BundleLayout> MakeBundleLayout(const model::Model& model, int64_t layer);

struct PackReport {
  // Root mean square of (packed - file) over that of the file's weights, for the neurons packed; 0 where
  // nothing was requantised.
  double down_requantization_error = 0;
};

// Writes the bundles of the given neurons (ascending file numbers; ignored with `all` = true, which takes
// every neuron), one after another, to out[neurons * bundle_bytes]; `out` lies on a 64-byte boundary. Uses
// the pool. Reads each tensor of the file once, front to back, asks for the next one ahead (also the next
// layer's) and releases the pages behind: besides `out` it holds one tensor's pages and less than 1 MiB a
// thread.
absl::StatusOr<PackReport> PackBundles(const model::Model& model, int64_t layer, const BundleLayout& layout,
                                       bool all, const std::vector<int32_t>& neurons, base::ThreadPool& pool,
                                       uint8_t* out);

}  // namespace isotherm::neuron

#endif  // ISOTHERM_COMMON_NEURON_BUNDLE_H_
