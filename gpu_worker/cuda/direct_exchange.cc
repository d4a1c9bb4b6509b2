#include "gpu_worker/cuda/direct_exchange.h"

#include <algorithm>
#include <cstddef>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/exchange/region_layout.h"
#include "common/neuron/mask.h"

namespace isotherm::gpu_worker::cuda {
namespace {

ExchangeRegion MapRegion(uint8_t* base, const exchange::SharedMemory& memory) {
  const exchange::RegionLayout layout = exchange::MakeRegionLayout(memory.geometry, exchange::kSlots);
  const auto word = [&](size_t offset) { return reinterpret_cast<uint32_t*>(base + offset); };
  ExchangeRegion region;
  region.slots = base + exchange::kRegionHeaderBytes;
  region.slot_bytes = layout.slot_bytes;
  region.x = layout.x;
  region.masks = layout.masks;
  region.gate_values = layout.gate_values;
  region.answer = layout.answer;
  region.y = layout.y;
  region.expected = layout.expected;
  region.request_doorbell = word(offsetof(exchange::RegionHeader, request_doorbell));
  region.answer_doorbell = word(offsetof(exchange::RegionHeader, answer_doorbell));
  region.expectation_doorbell = word(offsetof(exchange::RegionHeader, expectation_doorbell));
  region.failed = word(offsetof(exchange::RegionHeader, failed));
  region.generation = memory.generation;
  region.timeout_ns =
      static_cast<uint64_t>(absl::ToInt64Nanoseconds(std::min(memory.timeout, absl::Hours(24))));
  return region;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DirectExchange>> DirectExchange::Attach(exchange::Channel& channel,
                                                                       int64_t layers) {
  const std::optional<exchange::SharedMemory> memory = channel.shared_memory();
  if (!memory.has_value()) return nullptr;
  std::unique_ptr<DirectExchange> direct(new DirectExchange(channel, *memory, layers));
  ISOTHERM_RETURN_IF_ERROR(direct->Register());
  channel.RingFromDevice();
  const int64_t words = memory->geometry.max_rows * neuron::MaskWords(memory->geometry.ffn);
  ISOTHERM_ASSIGN_OR_RETURN(direct->state_, AllocateDevice(direct->StateBytes()));
  ISOTHERM_ASSIGN_OR_RETURN(direct->host_state_, AllocatePinned(direct->StateBytes()));
  ISOTHERM_ASSIGN_OR_RETURN(direct->gate_offsets_,
                            AllocateDevice(words * static_cast<int64_t>(sizeof(uint32_t))));
  return direct;
}

absl::Status DirectExchange::Register() {
  ISOTHERM_ASSIGN_OR_RETURN(registration_, RegisterHost(memory_.base, memory_.bytes, /*read_only=*/false,
                                                        "registering the exchange's shared memory"));
  void* device = nullptr;
  ISOTHERM_RETURN_IF_ERROR(
      ToStatus(cudaHostGetDevicePointer(&device, memory_.base, 0), "mapping the exchange's shared memory"));
  region_ = MapRegion(static_cast<uint8_t*>(device), memory_);
  return absl::OkStatus();
}

int64_t DirectExchange::StateBytes() const {
  return static_cast<int64_t>(sizeof(ExchangeState)) + layers_ * static_cast<int64_t>(sizeof(ExchangeRecord));
}

absl::Status DirectExchange::BeginPass(uint64_t step, uint64_t placement_epoch, cudaStream_t stream) {
  auto* const state = static_cast<ExchangeState*>(host_state_.get());
  *state = ExchangeState{.step = step, .placement_epoch = placement_epoch, .sequence = channel_.sequence()};
  std::fill_n(reinterpret_cast<ExchangeRecord*>(state + 1), layers_, ExchangeRecord{});
  return ToStatus(cudaMemcpyAsync(state_.get(), state, StateBytes(), cudaMemcpyHostToDevice, stream),
                  "starting the exchanges of a pass");
}

cudaError_t DirectExchange::Send(ExchangeCall call, cudaStream_t stream) {
  call.gate_offsets = static_cast<uint32_t*>(gate_offsets_.get());
  return SendCold(region_, call, state(), stream);
}

cudaError_t DirectExchange::Expect(const ExchangeCall& call, cudaStream_t stream) {
  return ExpectCold(region_, call, state(), stream);
}

cudaError_t DirectExchange::Merge(const ExchangeCall& call, float* y, cudaStream_t stream) {
  return MergeCold(region_, call, state(), records() + call.layer, y, stream);
}

cudaError_t DirectExchange::MergeAndNormalize(const ExchangeCall& call, const RowAddend& hot,
                                              const RowNorm& norm, float* y, float* out,
                                              cudaStream_t stream) {
  return cuda::MergeAndNormalize(region_, call, state(), records() + call.layer, hot, norm, y, out, stream);
}

absl::Status DirectExchange::EndPass(cudaStream_t stream) {
  return ToStatus(
      cudaMemcpyAsync(host_state_.get(), state_.get(), StateBytes(), cudaMemcpyDeviceToHost, stream),
      "reading the exchanges of a pass");
}

std::vector<absl::Duration> DirectExchange::Overheads() const {
  const auto* const state = static_cast<const ExchangeState*>(host_state_.get());
  const auto* const records = reinterpret_cast<const ExchangeRecord*>(state + 1);
  std::vector<absl::Duration> overheads;
  for (int64_t l = 0; l < layers_; ++l) {
    if (records[l].answered == 0) continue;
    overheads.push_back(absl::Nanoseconds(records[l].latency_ns) - absl::Nanoseconds(records[l].compute_ns));
  }
  return overheads;
}

absl::Status DirectExchange::Finish(int64_t rows, PassStatistics& statistics) {
  const auto* const state = static_cast<const ExchangeState*>(host_state_.get());
  const auto* const records = reinterpret_cast<const ExchangeRecord*>(state + 1);
  int64_t gate_values = 0;
  for (int64_t l = 0; l < layers_; ++l) {
    if (records[l].answered == 0) continue;
    gate_values += records[l].gate_values;
    statistics.layers[l].cold_computed += records[l].computed;
    statistics.layers[l].active += records[l].active;
    statistics.exchange_latencies.push_back(absl::Nanoseconds(records[l].latency_ns));
    statistics.cpu_worker_wait += absl::Nanoseconds(records[l].wait_ns);
  }
  channel_.Advance(state->sequence, rows, gate_values);
  switch (state->failure) {
    case ExchangeFailure::kNone:
      return absl::OkStatus();
    case ExchangeFailure::kTimeout:
      return channel_.Fail(absl::DeadlineExceededError(
          absl::StrCat("no answer from the CPU worker in ", absl::FormatDuration(memory_.timeout))));
    case ExchangeFailure::kRegionFailed:
      return channel_.Fail(absl::UnavailableError("the CPU worker ended the exchange"));
    case ExchangeFailure::kWrongAnswer:
      break;
  }
  return channel_.Fail(absl::DataLossError("the CPU worker's answer belongs to another request"));
}

}  // namespace isotherm::gpu_worker::cuda
