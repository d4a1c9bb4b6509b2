#include <algorithm>

#include "common/neuron/mask.h"
#include "gpu_worker/device/cold_half.h"
#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {

void HostDevice::SendCold(const FfnCall& call, const HotLayer& hot) {
  if (!failure_.ok() || hot.count == ffn_.ffn) return;
  if (channel_ == nullptr) {
    Latch(absl::UnavailableError("the CPU worker is not connected"));
    return;
  }
  const absl::Status sent = SendColdHalf(*channel_, pass_.step, placement_epoch_, call, hot.hot_mask, ffn_);
  if (!sent.ok()) return Latch(sent);
  ++exchanges_pending_;
}

void HostDevice::HotFfn(const FfnCall& call, const HotLayer& hot, float* y) {
  if (!failure_.ok()) return;
  if (hot.count == 0) {
    std::fill_n(y, call.rows * ffn_.hidden, 0.0f);
    return;
  }
  SelectHalf(call, hot.hot_mask, ffn_.ffn, /*want_hot=*/true, hot_masks_.data(), gate_values_.data());
  neuron::FfnRequest request;
  request.rows = call.rows;
  request.x = call.x;
  request.masks = hot_masks_.data();
  request.ffn = ffn_.ffn;
  request.gate_values = call.gate == nullptr ? nullptr : gate_values_.data();
  request.dense = call.dense;
  request.activation = ffn_.activation;
  request.activation_threshold = ffn_.activation_threshold;
  request.firings = firings_[call.layer].data();
  const neuron::BundleView view{hot.bundles, &hot.layout, hot.neuron_ids, hot.count};
  const neuron::FfnStatistics done = executor_->Run(view, request, y);
  statistics_.layers[call.layer].hot_computed += done.computed;
  statistics_.layers[call.layer].active += done.active;
}

bool HostDevice::looks_ahead(int64_t rows) const {
  return look_ahead_ && channel_ != nullptr && rows <= neuron::kSparseRows;
}

void HostDevice::ExpectCold(const FfnCall& call, const HotLayer& hot) {
  if (!failure_.ok()) return;
  const int64_t words = neuron::MaskWords(ffn_.ffn);
  for (int64_t w = 0; w < words; ++w) {
    hot_masks_[w] = 0;
    for (int64_t row = 0; row < call.rows; ++row) hot_masks_[w] |= call.masks[row * words + w];
    hot_masks_[w] &= ~hot.hot_mask[w];
  }
  channel_->Expect(call.layer, hot_masks_.data());
}

void HostDevice::MergeCold(const FfnCall& call, const HotLayer& hot, float* y) {
  // Of a layer that is wholly hot nothing was sent; what is pending is another micro-batch's.
  if (exchanges_pending_ == 0 || hot.count == ffn_.ffn) return;
  --exchanges_pending_;
  absl::StatusOr<exchange::Channel::Answer> answer = channel_->Await();
  if (!answer.ok()) return Latch(answer.status());
  kernels::Add(answer->y, y, call.rows * ffn_.hidden);
  statistics_.layers[call.layer].cold_computed += answer->computed;
  statistics_.layers[call.layer].active += answer->active;
  statistics_.exchange_latencies.push_back(answer->latency);
  statistics_.cpu_worker_wait += answer->wait;
}

}  // namespace isotherm::gpu_worker
