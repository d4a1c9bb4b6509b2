#include "gpu_worker/kernels/sparse_ffn.h"

#include <algorithm>

#include "common/base/status_macros.h"
#include "common/neuron/mask.h"
#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/cuda/limits.h"
#include "gpu_worker/device/cold_half.h"
#include "gpu_worker/kernels/elementwise.h"
#include "gpu_worker/kernels/mat_mul.h"

namespace isotherm::gpu_worker {
namespace {

// `firings` is the layer's.
cuda::HotNeurons Neurons(const HotLayer& hot, const FfnParameters& ffn, unsigned* firings) {
  return {hot.bundles, hot.layout.bundle_bytes, hot.neuron_ids, hot.count, ffn.hidden, ffn.ffn, firings};
}

cuda::BundleRow GateRow(const neuron::BundleLayout& layout) {
  return {layout.gate_type, 0, layout.bias_offset};
}
cuda::BundleRow UpRow(const neuron::BundleLayout& layout) { return {layout.up_type, layout.up_offset}; }
cuda::BundleRow DownRow(const neuron::BundleLayout& layout) { return {layout.down_type, layout.down_offset}; }

cuda::GateActivation Activation(const FfnParameters& ffn, bool gated) {
  cuda::GateActivation activation;
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
      activation.function = cuda::GateFunction::kSquaredRelu;
      break;
    case model::Activation::kSilu:
      activation.function = cuda::GateFunction::kSilu;
      break;
    case model::Activation::kGelu:
      activation.function = cuda::GateFunction::kGelu;
      break;
  }
  return activation;
}

// The same row of all the neurons' bundles as a matrix.
kernels::WeightMatrix Matrix(const cuda::HotNeurons& neurons, const cuda::BundleRow& row) {
  return {neurons.bundles + row.offset, row.type, neurons.count, neurons.hidden, neurons.bundle_bytes};
}

}  // namespace

void CudaDevice::HotFfn(const FfnCall& call, const HotLayer& hot, float* y) {
  if (hot.count == 0) {
    return Enqueue("clearing the FFN output",
                   [&] { return cudaMemsetAsync(y, 0, call.rows * ffn_.hidden * sizeof(float), stream()); });
  }
  if (mode_ == Mode::kReplay || !failure_.ok()) return;
  const bool sparse = call.rows <= cuda::kSparseRows && ffn_.hidden <= cuda::kMostStagedColumns;
  Latch(sparse ? HotFfnSparse(call, hot, y) : HotFfnTiled(call, hot, y));
}

absl::Status CudaDevice::HotFfnSparse(const FfnCall& call, const HotLayer& hot, float* y) {
  const cuda::HotNeurons neurons = Neurons(hot, ffn_, LayerFirings(call.layer));
  const cuda::FfnRows rows{call.x, call.masks, call.rows};
  const cuda::GateActivation activation = Activation(ffn_, hot.layout.gated);
  auto* const values = static_cast<float*>(values_.get());
  auto* const counters = static_cast<cuda::FfnCounters*>(counters_.get()) + call.layer;
  const cudaError_t gates =
      call.gate == nullptr
          ? cuda::GateRows(neurons, GateRow(hot.layout), rows, activation, values, counters, stream())
          : cuda::ActivateGates(neurons, {call.gate, ffn_.ffn, /*by_id=*/true}, rows, activation, values,
                                counters, stream());
  ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(gates, "gates"));
  if (hot.layout.gated) {
    ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(
        cuda::MultiplyByUpRows(neurons, UpRow(hot.layout), rows, activation, values, counters, stream()),
        "up projection"));
  }
  return cuda::ToStatus(cuda::DownRows(neurons, DownRow(hot.layout), call.rows, values,
                                       static_cast<float*>(partials_.get()), y, stream()),
                        "down projection");
}

absl::Status CudaDevice::HotFfnTiled(const FfnCall& call, const HotLayer& hot, float* y) {
  const cuda::HotNeurons all = Neurons(hot, ffn_, LayerFirings(call.layer));
  const cuda::FfnRows rows{call.x, call.masks, call.rows};
  const cuda::GateActivation activation = Activation(ffn_, hot.layout.gated);
  auto* const counters = static_cast<cuda::FfnCounters*>(counters_.get()) + call.layer;
  const int64_t tile = std::clamp<int64_t>(cuda::kArenaFloats / (ffn_.hidden + 2 * call.rows), 1, all.count);
  auto* const weights = static_cast<float*>(arena_.get());
  float* const values = weights + tile * ffn_.hidden;
  float* const factors = values + tile * call.rows;
  for (int64_t first = 0; first < all.count; first += tile) {
    const cuda::HotNeurons neurons = all.Slice(first, std::min(tile, all.count - first));
    // out [rows, neurons] = a row of each bundle . x.
    const auto product = [&](const cuda::BundleRow& row, float* out) -> absl::Status {
      ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(
          cuda::Unpack(Matrix(neurons, row), 0, neurons.count, weights, stream()), "unpacking hot neurons"));
      return cublas_->ProductNT(call.rows, neurons.count, ffn_.hidden, call.x, weights, out, neurons.count);
    };
    const bool given = call.gate != nullptr;
    if (!given) ISOTHERM_RETURN_IF_ERROR(product(GateRow(hot.layout), values));
    const cuda::GateSource gates =
        given ? cuda::GateSource{call.gate, ffn_.ffn, true}
              : cuda::GateSource{values, neurons.count, false, hot.layout.bias_offset};
    ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(
        cuda::ActivateGates(neurons, gates, rows, activation, values, counters, stream()), "gates"));
    if (hot.layout.gated) {
      ISOTHERM_RETURN_IF_ERROR(product(UpRow(hot.layout), factors));
      ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(
          cuda::MultiplyActive(neurons, factors, call.rows, activation, values, counters, stream()),
          "up projection"));
    }
    ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(
        cuda::Unpack(Matrix(neurons, DownRow(hot.layout)), 0, neurons.count, weights, stream()),
        "unpacking hot neurons"));
    ISOTHERM_RETURN_IF_ERROR(cublas_->ProductNN(call.rows, ffn_.hidden, neurons.count, values, weights,
                                                /*accumulate=*/first > 0, y));
  }
  return absl::OkStatus();
}

void CudaDevice::SendCold(const FfnCall& call, const HotLayer& hot) {
  if (hot.count == ffn_.ffn) return;
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

void CudaDevice::MergeCold(const FfnCall& call, const HotLayer& hot, float* y) {
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
