#include "gpu_worker/kernels/sparse_ffn.h"

#include <algorithm>

#include "common/base/status_macros.h"
#include "common/neuron/mask.h"
#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/cuda/ffn_views.h"
#include "gpu_worker/cuda/limits.h"
#include "gpu_worker/device/cold_half.h"
#include "gpu_worker/kernels/elementwise.h"
#include "gpu_worker/kernels/mat_mul.h"

namespace isotherm::gpu_worker {

void CudaDevice::HotFfn(const FfnCall& call, const HotLayer& hot, float* y) {
  if (hot.count == 0) {
    return Enqueue("clearing the FFN output",
                   [&] { return cuda::Clear(y, call.rows * ffn_.hidden, stream()); });
  }
  if (mode_ == Mode::kReplay || !failure_.ok()) return;
  const bool sparse = call.rows <= cuda::kSparseRows && ffn_.hidden <= cuda::kMostStagedColumns;
  if (sparse) return HotFfnSparse(call, hot, y);
  Latch(DenseFfn(
      call, {hot.layout, cuda::Neurons(hot, ffn_, LayerFirings(call.layer)), HotCounters(call.layer)}, y));
}

void CudaDevice::HotFfnSparse(const FfnCall& call, const HotLayer& hot, float* y) {
  const cuda::HotNeurons neurons = cuda::Neurons(hot, ffn_, LayerFirings(call.layer));
  const cuda::FfnRows rows{call.x, call.masks, call.rows};
  const cuda::GateActivation activation = cuda::Activation(ffn_, hot.layout.gated);
  auto* const values = static_cast<float*>(values_.get());
  auto* const counters = HotCounters(call.layer);
  Enqueue("hot gates", [&] {
    return call.gate == nullptr ? cuda::GateRows(neurons, cuda::GateRow(hot.layout), rows, activation, values,
                                                 counters, stream())
                                : cuda::ActivateGates(neurons, {call.gate, ffn_.ffn, /*by_id=*/true}, rows,
                                                      activation, values, counters, stream());
  });
  if (hot.layout.gated) {
    Enqueue("hot up projection", [&] {
      return cuda::MultiplyByUpRows(neurons, cuda::UpRow(hot.layout), rows, activation, values, counters,
                                    stream());
    });
  }
  Enqueue("hot down projection", [&] {
    return cuda::DownRows(neurons, cuda::DownRow(hot.layout), call.rows, values,
                          static_cast<float*>(partials_.get()), y, stream());
  });
}

void CudaDevice::SendCold(const FfnCall& call, const HotLayer& hot) {
  if (hot.count == ffn_.ffn || streaming_) return;
  if (direct_ != nullptr) {
    return Enqueue("sending cold neurons", [&] { return direct_->Send(call, hot.hot_mask, ffn_, stream()); });
  }
  LeaveGraph();
  if (!failure_.ok()) return;
  if (channel_ == nullptr) return Latch(absl::UnavailableError("the CPU worker is not connected"));
  if (const absl::Status sent = SendColdThroughHost(call, hot); !sent.ok()) return Latch(sent);
  exchange_pending_ = true;
}

absl::Status CudaDevice::SendColdThroughHost(const FfnCall& call, const HotLayer& hot) {
  const int64_t words = neuron::MaskWords(ffn_.ffn);
  const int64_t mask_bytes = words * static_cast<int64_t>(sizeof(uint64_t));
  const int64_t x_bytes = call.rows * ffn_.hidden * static_cast<int64_t>(sizeof(float));
  const int64_t gate_bytes =
      call.gate == nullptr ? 0 : call.rows * ffn_.ffn * static_cast<int64_t>(sizeof(float));
  ISOTHERM_ASSIGN_OR_RETURN(uint8_t* const staging,
                            Staging((1 + call.rows) * mask_bytes + x_bytes + gate_bytes));
  uint8_t* to = staging;
  absl::Status status;
  const auto fetch = [&](const void* source, int64_t bytes) -> const uint8_t* {
    if (status.ok()) {
      status = cuda::ToStatus(cudaMemcpyAsync(to, source, bytes, cudaMemcpyDeviceToHost, stream()),
                              "fetching an exchange");
    }
    return std::exchange(to, to + bytes);
  };
  FfnCall on_host = call;
  const auto* const hot_mask = reinterpret_cast<const uint64_t*>(fetch(hot.hot_mask, mask_bytes));
  on_host.masks = reinterpret_cast<const uint64_t*>(fetch(call.masks, call.rows * mask_bytes));
  on_host.x = reinterpret_cast<const float*>(fetch(call.x, x_bytes));
  if (call.gate != nullptr) on_host.gate = reinterpret_cast<const float*>(fetch(call.gate, gate_bytes));
  ISOTHERM_RETURN_IF_ERROR(status);
  ISOTHERM_RETURN_IF_ERROR(Wait("fetching an exchange"));
  return SendColdHalf(*channel_, step_, placement_epoch_, on_host, hot_mask, ffn_);
}

bool CudaDevice::looks_ahead(int64_t rows) const {
  return look_ahead_ && direct_ != nullptr && rows <= cuda::kSparseRows;
}

void CudaDevice::ExpectCold(const FfnCall& call, const HotLayer& hot) {
  Enqueue("expecting cold neurons", [&] { return direct_->Expect(call, hot.hot_mask, ffn_, stream()); });
}

void CudaDevice::MergeCold(const FfnCall& call, const HotLayer& hot, float* y) {
  if (streaming_ && hot.count < ffn_.ffn) {
    if (failure_.ok()) Latch(StreamColdFfn(call, hot, y));
    return;
  }
  if (direct_ != nullptr && hot.count < ffn_.ffn) {
    return Enqueue("merging cold neurons", [&] { return direct_->Merge(call, ffn_, y, stream()); });
  }
  if (!exchange_pending_) return;
  exchange_pending_ = false;
  const absl::StatusOr<exchange::Channel::Answer> answer = channel_->Await();
  if (!answer.ok()) return Latch(answer.status());
  const int64_t count = call.rows * ffn_.hidden;
  auto* const cold = static_cast<float*>(cold_answer_.get());
  Enqueue("uploading an answer", [&] {
    return cudaMemcpyAsync(cold, answer->y, count * sizeof(float), cudaMemcpyHostToDevice, stream());
  });
  Enqueue("merging an answer",
          [&] { return cuda::Add(cold, nullptr, 1, call.rows, ffn_.hidden, y, stream()); });
  statistics_.layers[call.layer].cold_computed += answer->computed;
  statistics_.layers[call.layer].active += answer->active;
  statistics_.exchange_latencies.push_back(answer->latency);
  statistics_.cpu_worker_wait += answer->wait;
}

}  // namespace isotherm::gpu_worker
