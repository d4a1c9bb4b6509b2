#include <algorithm>

#include "common/neuron/mask.h"
#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {
namespace {

// out = masks & hot (or & ~hot) row by row, and where `gate` [rows, ffn] is given its values at the set bits,
// compacted in the order the exchange and the FFN kernels read them. Returns the number of set bits.
int64_t SelectHalf(const FfnCall& call, const HotLayer& hot, int64_t ffn, bool want_hot, uint64_t* out,
                   float* gate_values) {
  const int64_t words = neuron::MaskWords(ffn);
  int64_t selected = 0;
  for (int64_t r = 0; r < call.rows; ++r) {
    for (int64_t w = 0; w < words; ++w) {
      const uint64_t side = want_hot ? hot.hot_mask[w] : ~hot.hot_mask[w];
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

}  // namespace

void HostDevice::SendCold(const FfnCall& call, const HotLayer& hot) {
  if (!failure_.ok() || hot.count == ffn_.ffn) return;
  if (channel_ == nullptr) {
    Latch(absl::UnavailableError("the CPU worker is not connected"));
    return;
  }
  exchange::RequestHeader header;
  header.step = pass_.step;
  header.layer = call.layer;
  header.rows = call.rows;
  header.placement_epoch = placement_epoch_;
  header.dense = call.dense;
  header.has_gate_values = call.gate != nullptr;
  absl::StatusOr<exchange::RequestBuffers> buffers = channel_->Begin(header);
  if (!buffers.ok()) return Latch(buffers.status());
  std::copy_n(call.x, call.rows * ffn_.hidden, buffers->x);
  const int64_t selected =
      SelectHalf(call, hot, ffn_.ffn, /*want_hot=*/false, buffers->masks, buffers->gate_values);
  if (absl::Status status = channel_->Send(call.gate == nullptr ? 0 : selected); !status.ok())
    return Latch(status);
  exchange_pending_ = true;
}

void HostDevice::HotFfn(const FfnCall& call, const HotLayer& hot, float* y) {
  if (!failure_.ok()) return;
  if (hot.count == 0) {
    std::fill_n(y, call.rows * ffn_.hidden, 0.0f);
    return;
  }
  SelectHalf(call, hot, ffn_.ffn, /*want_hot=*/true, hot_masks_.data(), gate_values_.data());
  neuron::FfnRequest request;
  request.rows = call.rows;
  request.x = call.x;
  request.masks = hot_masks_.data();
  request.ffn = ffn_.ffn;
  request.gate_values = call.gate == nullptr ? nullptr : gate_values_.data();
  request.dense = call.dense;
  request.activation = ffn_.activation;
  request.activation_threshold = ffn_.activation_threshold;
  const neuron::BundleView view{hot.bundles, &hot.layout, hot.neuron_ids, hot.count};
  const neuron::FfnStatistics done = executor_->Run(view, request, y);
  statistics_.layers[call.layer].hot_computed += done.computed;
  statistics_.layers[call.layer].active += done.active;
}

void HostDevice::MergeCold(const FfnCall& call, const HotLayer& hot, float* y) {
  if (!exchange_pending_) return;
  exchange_pending_ = false;
  absl::StatusOr<exchange::Channel::Answer> answer = channel_->Await();
  if (!answer.ok()) return Latch(answer.status());
  kernels::Add(answer->y, y, call.rows * ffn_.hidden);
  statistics_.layers[call.layer].cold_computed += answer->computed;
  statistics_.layers[call.layer].active += answer->active;
  statistics_.exchange_latencies.push_back(answer->latency);
  statistics_.cpu_worker_wait += answer->wait;
}

}  // namespace isotherm::gpu_worker
