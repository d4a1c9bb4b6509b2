#include "gpu_worker/kernels/sparse_ffn.h"

#include <algorithm>

#include "common/base/status_macros.h"
#include "common/exchange/descriptor.h"
#include "common/neuron/mask.h"
#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/cuda/ffn_views.h"
#include "gpu_worker/cuda/limits.h"
#include "gpu_worker/device/cold_half.h"
#include "gpu_worker/kernels/elementwise.h"
#include "gpu_worker/kernels/mat_mul.h"

namespace isotherm::gpu_worker {

bool CudaDevice::SparseKernelsFit(int64_t rows) const {
  return rows <= cuda::kSparseRows && ffn_.hidden <= cuda::kMostStagedColumns;
}

cuda::NeuronSet CudaDevice::BusNeurons(const FfnCall& call, const HotLayer& hot) const {
  const bool possible =
      direct_ != nullptr && cold_stream_ != nullptr && SparseKernelsFit(call.rows) && hot.count < ffn_.ffn;
  const int of_64 = cuda::BusNeuronsOf64(bus_share_, hot.layout);
  if (!possible || of_64 == 0) return {};
  const uint8_t* const bundles = cold_stream_->Bundles(call.layer, hot.layout.bundle_bytes);
  if (bundles == nullptr) return {};
  cuda::NeuronSet set = cuda::Neurons(hot, ffn_, LayerFirings(call.layer));
  set.bundles = bundles;
  set.ids = nullptr;
  set.of_64 = of_64;
  set.count = ffn_.ffn / 64 * of_64 + std::min<int64_t>(of_64, ffn_.ffn % 64);
  set.without = hot.hot_mask;
  return set;
}

void CudaDevice::HotFfn(const FfnCall& call, const HotLayer& hot, float* y) {
  const cuda::NeuronSet bus = BusNeurons(call, hot);
  if (hot.count + bus.count == 0) {
    return Enqueue("clearing the FFN output",
                   [&] { return cuda::Clear(y, call.rows * ffn_.hidden, stream()); });
  }
  if (mode_ == Mode::kReplay || !failure_.ok()) return;
  if (SparseKernelsFit(call.rows)) return SparseFfn(call, hot, bus, y);
  Latch(DenseFfn(
      call, {hot.layout, cuda::Neurons(hot, ffn_, LayerFirings(call.layer)), HotCounters(call.layer)}, y));
}

void CudaDevice::SparseFfn(const FfnCall& call, const HotLayer& hot, const cuda::NeuronSet& bus, float* y) {
  const cuda::FfnRows rows{call.x, call.masks, call.rows};
  const cuda::GateActivation activation = cuda::Activation(ffn_, hot.layout.gated);
  auto* const values = static_cast<float*>(values_.get());
  const cuda::FfnParts parts{
      .bus = {bus, values + cuda::kSparseRows * ffn_.ffn, ColdCounters(call.layer)},
      .hot = {cuda::Neurons(hot, ffn_, LayerFirings(call.layer)), values, HotCounters(call.layer)}};
  const cuda::BundleRow gate = cuda::GateRow(hot.layout), up = cuda::UpRow(hot.layout);
  const bool together = call.gate == nullptr && hot.layout.gated && gate.type == up.type;
  Enqueue(together ? "gates and up projection" : "gates", [&] {
    return call.gate == nullptr
               ? cuda::GateRows(parts, gate, together ? &up : nullptr, rows, activation, stream())
               : cuda::ActivateGates(parts, {call.gate, ffn_.ffn, /*by_id=*/true}, rows, activation,
                                     stream());
  });
  if (hot.layout.gated && !together) {
    Enqueue("up projection", [&] { return cuda::MultiplyByUpRows(parts, up, rows, activation, stream()); });
  }
  Enqueue("down projection", [&] {
    return cuda::DownRows(parts, cuda::DownRow(hot.layout), call.rows, static_cast<float*>(partials_.get()),
                          y, stream());
  });
}

cuda::ExchangeCall CudaDevice::MakeExchange(const FfnCall& call, const HotLayer& hot) const {
  cuda::ExchangeCall made;
  made.layer = static_cast<uint32_t>(call.layer);
  made.flags =
      (call.dense ? exchange::kFlagDense : 0u) | (call.gate != nullptr ? exchange::kFlagGateValues : 0u);
  made.rows = call.rows;
  made.hidden = ffn_.hidden;
  made.ffn = ffn_.ffn;
  made.x = call.x;
  made.masks = call.masks;
  made.hot_mask = hot.hot_mask;
  made.gate = call.gate;
  const cuda::NeuronSet bus = BusNeurons(call, hot);
  if (bus.count > 0) made.computed_here = ~uint64_t{0} >> (64 - bus.of_64);
  return made;
}

void CudaDevice::SendCold(const FfnCall& call, const HotLayer& hot) {
  if (hot.count == ffn_.ffn || streaming_) return;
  if (direct_ != nullptr) {
    return Enqueue("sending cold neurons", [&] { return direct_->Send(MakeExchange(call, hot), stream()); });
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
  Enqueue("expecting cold neurons", [&] { return direct_->Expect(MakeExchange(call, hot), stream()); });
}

void CudaDevice::MergeCold(const FfnCall& call, const HotLayer& hot, float* y) {
  if (streaming_ && hot.count < ffn_.ffn) {
    if (failure_.ok()) Latch(StreamColdFfn(call, hot, y));
    return;
  }
  if (direct_ != nullptr && hot.count < ffn_.ffn) {
    return Enqueue("merging cold neurons",
                   [&] { return direct_->Merge(MakeExchange(call, hot), y, stream()); });
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
