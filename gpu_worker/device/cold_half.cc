#include "gpu_worker/device/cold_half.h"

#include <algorithm>

#include "common/base/status_macros.h"
#include "common/neuron/mask.h"

namespace isotherm::gpu_worker {

int64_t SelectHalf(const FfnCall& call, const uint64_t* hot_mask, int64_t ffn, bool want_hot, uint64_t* out,
                   float* gate_values) {
  const int64_t words = neuron::MaskWords(ffn);
  int64_t selected = 0;
  for (int64_t r = 0; r < call.rows; ++r) {
    for (int64_t w = 0; w < words; ++w) {
      const uint64_t side = want_hot ? hot_mask[w] : ~hot_mask[w];
      out[r * words + w] = call.masks[r * words + w] & side;
    }
    if (call.gate == nullptr) {
      selected += neuron::CountBits(out + r * words, words);
      continue;
    }
    const float* row_gate = call.gate + r * ffn;
    neuron::ForEachSet(out + r * words, words, [&](int64_t j) { gate_values[selected++] = row_gate[j]; });
  }
  return selected;
}

absl::Status SendColdHalf(exchange::Channel& channel, uint64_t step, uint64_t placement_epoch,
                          const FfnCall& call, const uint64_t* hot_mask, const FfnParameters& ffn) {
  exchange::RequestHeader header;
  header.step = step;
  header.layer = call.layer;
  header.rows = call.rows;
  header.placement_epoch = placement_epoch;
  header.dense = call.dense;
  header.has_gate_values = call.gate != nullptr;
  ISOTHERM_ASSIGN_OR_RETURN(const exchange::RequestBuffers buffers, channel.Begin(header));
  std::copy_n(call.x, call.rows * ffn.hidden, buffers.x);
  const int64_t selected =
      SelectHalf(call, hot_mask, ffn.ffn, /*want_hot=*/false, buffers.masks, buffers.gate_values);
  return channel.Send(call.gate == nullptr ? 0 : selected);
}

}  // namespace isotherm::gpu_worker
