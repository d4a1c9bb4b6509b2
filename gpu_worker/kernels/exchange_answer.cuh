#ifndef ISOTHERM_GPU_WORKER_KERNELS_EXCHANGE_ANSWER_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_EXCHANGE_ANSWER_CUH_

#include <cuda/atomic>

#include "common/exchange/descriptor.h"
#include "gpu_worker/kernels/exchange.h"

// The exchange from the device's side: where a slot is, how its answer is awaited and what it says.
namespace isotherm::gpu_worker::cuda {

using SystemWord = ::cuda::atomic_ref<uint32_t, ::cuda::thread_scope_system>;

__device__ inline uint64_t NowNs() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

__device__ inline uint8_t* Slot(const ExchangeRegion& region, uint32_t sequence) {
  return region.slots + sequence % exchange::kSlots * region.slot_bytes;
}

__device__ inline bool Echoes(const exchange::Descriptor& answer, const ExchangeRegion& region,
                              const ExchangeCall& call, const ExchangeState& state) {
  return answer.step == state.step && answer.generation == region.generation &&
         answer.placement_epoch == state.placement_epoch && answer.layer == call.layer &&
         answer.rows == call.rows && answer.sequence == state.sequence &&
         answer.computed <= call.rows * call.ffn && answer.active <= answer.computed;
}

// By one thread. The bound keeps a dead peer from holding the stream for ever.
__device__ inline ExchangeFailure Poll(const ExchangeRegion& region, uint32_t sequence,
                                       uint64_t deadline_ns) {
  // A look at host memory takes over a microsecond, and an answer waits for the look after the one that
  // missed it: what is rarely so is looked at rarely.
  constexpr int kLooksPerCheck = 16;
  const SystemWord doorbell(*region.answer_doorbell);
  while (true) {
    for (int look = 0; look < kLooksPerCheck; ++look) {
      const uint32_t answered = doorbell.load(::cuda::memory_order_acquire);
      if (answered == sequence) return ExchangeFailure::kNone;
      if (answered != sequence - 1) return ExchangeFailure::kWrongAnswer;
    }
    if (*const_cast<const volatile uint32_t*>(region.failed) != 0) return ExchangeFailure::kRegionFailed;
    if (NowNs() > deadline_ns) return ExchangeFailure::kTimeout;
  }
}

// By one thread: what the answer says of itself, or a failure if it is to another request.
__device__ inline ExchangeFailure CheckAnswer(const ExchangeRegion& region, const ExchangeCall& call,
                                              const ExchangeState& state, ExchangeRecord* record) {
  // Read once: the peer could change it between a check and a use.
  exchange::Descriptor answer;
  const auto* const words =
      reinterpret_cast<const volatile uint64_t*>(Slot(region, state.sequence) + region.answer);
  for (size_t i = 0; i < sizeof(answer) / sizeof(uint64_t); ++i)
    reinterpret_cast<uint64_t*>(&answer)[i] = words[i];
  if (!Echoes(answer, region, call, state)) return ExchangeFailure::kWrongAnswer;
  record->compute_ns = answer.compute_ns;
  record->computed = answer.computed;
  record->active = answer.active;
  record->gate_values = answer.gate_value_count;
  record->answered = 1;
  return ExchangeFailure::kNone;
}

// By one thread of all: what became of the exchange.
__device__ inline void RecordAnswer(const ExchangeRegion& region, const ExchangeCall& call,
                                    ExchangeState* state, ExchangeRecord* record, uint64_t begin_ns) {
  const uint64_t now_ns = NowNs();
  record->latency_ns = now_ns - state->rung_at_ns;
  record->wait_ns = now_ns - begin_ns;
  const ExchangeFailure failure = CheckAnswer(region, call, *state, record);
  if (failure != ExchangeFailure::kNone) state->failure = failure;
}

// By all threads of a block. False if there is none, which is a failure of the pass.
__device__ inline bool AwaitAnswer(const ExchangeRegion& region, uint32_t sequence, ExchangeState* state) {
  __shared__ ExchangeFailure failure;
  if (threadIdx.x == 0) {
    failure = Poll(region, sequence, NowNs() + region.timeout_ns);
    if (failure != ExchangeFailure::kNone) state->failure = failure;
  }
  __syncthreads();
  return failure == ExchangeFailure::kNone;
}

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_EXCHANGE_ANSWER_CUH_
