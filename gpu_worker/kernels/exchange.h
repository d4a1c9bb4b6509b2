#ifndef ISOTHERM_GPU_WORKER_KERNELS_EXCHANGE_H_
#define ISOTHERM_GPU_WORKER_KERNELS_EXCHANGE_H_

#include <cuda_runtime.h>

#include <cstdint>

// One layer's exchange with the CPU worker without the host: kernels fill a slot of the shared-memory region
// (common/exchange/region_layout.h), ring, await the answer and merge it. The sequence number lives in device
// memory, so that a graph can be replayed for ever.
namespace isotherm::gpu_worker::cuda {

// Device addresses inside the registered region, and what does not change while it is mapped.
struct ExchangeRegion {
  uint8_t* slots = nullptr;
  int64_t slot_bytes = 0;
  // Offsets inside a slot.
  int64_t x = 0, masks = 0, gate_values = 0, answer = 0, y = 0, expected = 0;
  uint32_t* request_doorbell = nullptr;
  uint32_t* answer_doorbell = nullptr;
  uint32_t* expectation_doorbell = nullptr;
  const uint32_t* failed = nullptr;
  uint64_t generation = 0;
  uint64_t timeout_ns = 0;
};

enum class ExchangeFailure : uint32_t { kNone, kTimeout, kRegionFailed, kWrongAnswer };

// In device memory, uploaded at the start of a pass and read at its end.
struct ExchangeState {
  uint64_t step = 0;
  uint64_t placement_epoch = 0;
  uint64_t rung_at_ns = 0;  // the device's clock
  uint32_t sequence = 0;    // of the last request rung
  uint32_t blocks_done = 0;
  uint32_t gate_value_count = 0;
  ExchangeFailure failure = ExchangeFailure::kNone;  // nothing is rung or awaited once it is set
};

// What became of one layer's exchange.
struct ExchangeRecord {
  uint64_t latency_ns = 0;  // ring to answer
  uint64_t wait_ns = 0;     // of that, with nothing else to do
  uint64_t compute_ns = 0;  // of the latency, what the CPU worker spent computing
  uint32_t computed = 0;
  uint32_t active = 0;
  uint32_t gate_values = 0;
  uint32_t answered = 0;
};

struct ExchangeCall {
  uint32_t layer = 0;
  uint32_t flags = 0;  // exchange::DescriptorFlag
  int64_t rows = 0;
  int64_t hidden = 0;
  int64_t ffn = 0;
  const float* x = nullptr;            // [rows, hidden]
  const uint64_t* masks = nullptr;     // [rows, MaskWords(ffn)]
  const uint64_t* hot_mask = nullptr;  // [MaskWords(ffn)]
  const float* gate = nullptr;         // [rows, ffn]; null: none
  uint32_t* gate_offsets = nullptr;    // scratch [rows, MaskWords(ffn)]
  // Cold neurons that the CPU worker is not asked for, by their number modulo 64.
  uint64_t computed_here = 0;
};

// Fills the next slot with the rows, their cold bits and, where there are gates, the compacted cold ones; the
// last block rings.
cudaError_t SendCold(const ExchangeRegion& region, const ExchangeCall& call, ExchangeState* state,
                     cudaStream_t stream);
// Writes the union of the rows' cold bits into the slot of the request after the last one rung, of which
// call.layer is the layer, and rings the other doorbell.
cudaError_t ExpectCold(const ExchangeRegion& region, const ExchangeCall& call, ExchangeState* state,
                       cudaStream_t stream);
// Waits for the answer, bounded by the region's time-out; then y [rows, hidden] += the answer. After a
// failure y is anything.
cudaError_t MergeCold(const ExchangeRegion& region, const ExchangeCall& call, ExchangeState* state,
                      ExchangeRecord* record, float* y, cudaStream_t stream);

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_EXCHANGE_H_
