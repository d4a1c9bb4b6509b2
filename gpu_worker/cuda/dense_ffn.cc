#include <algorithm>

#include "common/base/round_up.h"
#include "common/base/status_macros.h"
#include "common/neuron/mask.h"
#include "gpu_worker/cuda/arena.h"
#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/cuda/ffn_views.h"
#include "gpu_worker/cuda/limits.h"
#include "gpu_worker/kernels/dense.h"

namespace isotherm::gpu_worker {
namespace {

// Tensor cores are fed well by multiples of so many neurons; tiles are padded with zero weights.
constexpr int64_t kNeuronMultiple = 16;

// The matrices of one tile, one after another in the arena.
struct TileShape {
  int64_t rows = 0;
  int64_t hidden = 0;
  bool exact = false;    // of all weights
  int64_t products = 0;  // rows of a bundle that are multiplied with the token rows: gate, up, both or none

  // What one neuron takes: its weights (first those for the products, then, in their place, the down row),
  // its products and its activations.
  int64_t NeuronFloats() const {
    return std::max<int64_t>(products, 1) * hidden * (exact ? 1 : 2) + (products + 2) * rows;
  }
};

}  // namespace

absl::Status CudaDevice::DenseFfn(const FfnCall& call, const FfnPart& part, float* y) {
  const int64_t most = cuda::RowsAtOnce(call.rows, ffn_.hidden);
  for (int64_t first = 0; first < call.rows; first += most) {
    FfnCall some = call;
    some.rows = std::min(most, call.rows - first);
    some.x += first * ffn_.hidden;
    some.masks += first * neuron::MaskWords(ffn_.ffn);
    if (some.gate != nullptr) some.gate += first * ffn_.ffn;
    ISOTHERM_RETURN_IF_ERROR(DenseFfnOfRows(some, part, y + first * ffn_.hidden));
  }
  return absl::OkStatus();
}

absl::Status CudaDevice::DenseFfnOfRows(const FfnCall& call, const FfnPart& part, float* y) {
  const neuron::BundleLayout& layout = part.layout;
  const bool given = call.gate != nullptr;
  const TileShape shape{call.rows, ffn_.hidden,
                        cuda::IsExactInTf32(layout.gate_type) && cuda::IsExactInTf32(layout.down_type) &&
                            (!layout.gated || cuda::IsExactInTf32(layout.up_type)),
                        (given ? 0 : 1) + (layout.gated ? 1 : 0)};
  const cuda::FfnRows rows{call.x, call.masks, call.rows};
  const cuda::GateActivation activation = cuda::Activation(ffn_, layout.gated);

  cuda::Arena arena(arena_.get());
  const cuda::SplitMatrix inputs = arena.TakeSplit(call.rows, ffn_.hidden, /*exact=*/false);
  const int64_t room = (cuda::kArenaFloats - 2 * call.rows * ffn_.hidden) / shape.NeuronFloats();
  const int64_t tile = std::clamp(room / kNeuronMultiple * kNeuronMultiple, kNeuronMultiple,
                                  base::RoundUp(part.neurons.count, kNeuronMultiple));
  const cuda::SplitMatrix weights =
      arena.TakeSplit(std::max<int64_t>(shape.products, 1) * tile, ffn_.hidden, shape.exact);
  float* const products = arena.Take(shape.products * tile * call.rows);
  cuda::SplitMatrix values = arena.TakeSplit(call.rows, tile, /*exact=*/false);

  ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(cuda::SplitRows(call.x, call.rows, ffn_.hidden, inputs, stream()),
                                          "splitting the FFN's input"));
  for (int64_t first = 0; first < part.neurons.count; first += tile) {
    const cuda::NeuronSet neurons = part.neurons.Slice(first, std::min(tile, part.neurons.count - first));
    const int64_t padded = base::RoundUp(neurons.count, kNeuronMultiple);
    const int64_t stride = shape.products * padded;
    const auto unpack = [&](const cuda::BundleRow& row, int64_t place) {
      cuda::SplitMatrix out = weights;
      out.high += place * padded * ffn_.hidden;
      if (out.low != nullptr) out.low += place * padded * ffn_.hidden;
      return cuda::ToStatus(
          cuda::UnpackSplit(cuda::Matrix(neurons, row), 0, neurons.count, padded, out, stream()),
          "unpacking neurons");
    };
    // Gate and up rows below each other make one product, whose columns they share.
    if (!given) ISOTHERM_RETURN_IF_ERROR(unpack(cuda::GateRow(layout), 0));
    if (layout.gated) ISOTHERM_RETURN_IF_ERROR(unpack(cuda::UpRow(layout), shape.products - 1));
    if (shape.products > 0) {
      ISOTHERM_RETURN_IF_ERROR(cublas_->ProductNT(call.rows, stride, ffn_.hidden, inputs, weights,
                                                  /*accumulate=*/false, products, stride));
    }
    const cuda::GateSource gates = given ? cuda::GateSource{call.gate, ffn_.ffn, /*by_id=*/true}
                                         : cuda::GateSource{products, stride, false, layout.bias_offset};
    cuda::UpProducts ups;
    if (layout.gated) ups = {products + (shape.products - 1) * padded, stride};
    values.stride = padded;
    ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(
        cuda::ActivateDense(neurons, gates, ups, rows, activation, values, part.counters, stream()),
        "activations"));
    ISOTHERM_RETURN_IF_ERROR(unpack(cuda::DownRow(layout), 0));
    ISOTHERM_RETURN_IF_ERROR(cublas_->ProductNN(call.rows, ffn_.hidden, padded, values, weights,
                                                part.accumulate || first > 0, y, ffn_.hidden));
  }
  return absl::OkStatus();
}

absl::Status CudaDevice::StreamColdFfn(const FfnCall& call, const HotLayer& hot, float* y) {
  return cold_stream_->ForEachBatch(
      call.layer, hot.layout, hot.hot_mask, placement_epoch_, stream(),
      [&](const cuda::ColdStream::Batch& batch) {
        const cuda::NeuronSet neurons{.bundles = batch.bundles,
                                      .bundle_bytes = hot.layout.bundle_bytes,
                                      .ids = batch.ids,
                                      .count = batch.count,
                                      .hidden = ffn_.hidden,
                                      .ffn = ffn_.ffn,
                                      .firings = LayerFirings(call.layer)};
        return DenseFfn(call, {hot.layout, neurons, ColdCounters(call.layer), /*accumulate=*/true}, y);
      });
}

}  // namespace isotherm::gpu_worker
