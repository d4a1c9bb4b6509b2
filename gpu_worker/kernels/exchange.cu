#include <algorithm>

#include "common/neuron/mask.h"
#include "gpu_worker/kernels/chain.cuh"
#include "gpu_worker/kernels/exchange_answer.cuh"
#include "gpu_worker/kernels/float_vectors.cuh"
#include "gpu_worker/kernels/reduce.cuh"

namespace isotherm::gpu_worker::cuda {
namespace {

using ::isotherm::exchange::Descriptor;
using ::isotherm::exchange::Expectation;

constexpr int kThreads = 256;
constexpr int kScanThreads = 1024;
constexpr int kMergeThreads = 256;

__device__ uint64_t ColdWord(const ExchangeCall& call, int64_t words, int64_t i) {
  return call.masks[i] & ~call.hot_mask[i % words] & ~call.computed_here;
}

// Where each mask word's gate values begin, and how many there are in all; one block.
__global__ void __launch_bounds__(kScanThreads) ScanColdBits(ExchangeCall call, ExchangeState* state) {
  __shared__ uint32_t warp_sums[kScanThreads / kWarp];
  JoinChain();
  const int64_t words = neuron::MaskWords(call.ffn);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  uint32_t before = 0;
  for (int64_t base = 0; base < call.rows * words; base += kScanThreads) {
    const int64_t i = base + threadIdx.x;
    const uint32_t bits = i < call.rows * words ? __popcll(ColdWord(call, words, i)) : 0;
    uint32_t inclusive = bits;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const uint32_t lower = __shfl_up_sync(kAllLanes, inclusive, offset);
      inclusive += lane >= offset ? lower : 0;
    }
    if (lane == kWarp - 1) warp_sums[warp] = inclusive;
    __syncthreads();
    uint32_t offset = before + inclusive - bits;
    for (int w = 0; w < kScanThreads / kWarp; ++w) {
      offset += w < warp ? warp_sums[w] : 0;
      before += warp_sums[w];
    }
    if (i < call.rows * words) call.gate_offsets[i] = offset;
    __syncthreads();
  }
  if (threadIdx.x == 0) state->gate_value_count = before;
}

// A warp compacts the gate values of one mask word.
__device__ void WriteGateValues(const ExchangeCall& call, int64_t words, int64_t i, float* out) {
  const uint64_t bits = ColdWord(call, words, i);
  const float* row = call.gate + i / words * call.ffn + i % words * 64;
  out += call.gate_offsets[i];
  for (int bit = threadIdx.x % kWarp; bit < 64; bit += kWarp) {
    if (bits >> bit & 1) out[__popcll(bits & ((uint64_t{1} << bit) - 1))] = row[bit];
  }
}

__device__ void Ring(const ExchangeRegion& region, const ExchangeCall& call, uint32_t sequence, uint8_t* slot,
                     ExchangeState* state) {
  auto* const descriptor = reinterpret_cast<Descriptor*>(slot);
  *descriptor = {.step = state->step,
                 .generation = region.generation,
                 .placement_epoch = state->placement_epoch,
                 .layer = call.layer,
                 .rows = static_cast<uint32_t>(call.rows),
                 .flags = call.flags,
                 .gate_value_count = call.gate == nullptr ? 0 : state->gate_value_count,
                 .sequence = sequence};
  state->sequence = sequence;
  state->blocks_done = 0;
  state->rung_at_ns = NowNs();
  // Release: also of what the other blocks wrote, whose fences came before they were counted.
  SystemWord(*region.request_doorbell).store(sequence, ::cuda::memory_order_release);
}

__global__ void __launch_bounds__(kThreads)
    SendColdKernel(ExchangeRegion region, ExchangeCall call, ExchangeState* state) {
  JoinChain();
  if (state->failure != ExchangeFailure::kNone) return;
  const uint32_t sequence = state->sequence + 1;
  uint8_t* const slot = Slot(region, sequence);
  const int64_t words = neuron::MaskWords(call.ffn);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  auto* const x = reinterpret_cast<float*>(slot + region.x);
  for (int64_t i = first; i < call.rows * call.hidden; i += step) x[i] = call.x[i];
  auto* const masks = reinterpret_cast<uint64_t*>(slot + region.masks);
  for (int64_t i = first; i < call.rows * words; i += step) masks[i] = ColdWord(call, words, i);
  if (call.gate != nullptr) {
    auto* const values = reinterpret_cast<float*>(slot + region.gate_values);
    for (int64_t i = first / kWarp; i < call.rows * words; i += step / kWarp)
      WriteGateValues(call, words, i, values);
  }
  // Every block's part is on its way before the last one rings.
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (atomicAdd(&state->blocks_done, 1u) == gridDim.x - 1) Ring(region, call, sequence, slot, state);
}

__global__ void __launch_bounds__(kThreads)
    ExpectColdKernel(ExchangeRegion region, ExchangeCall call, ExchangeState* state) {
  JoinChain();
  if (state->failure != ExchangeFailure::kNone) return;
  const uint32_t sequence = state->sequence + 1;
  auto* const expected = reinterpret_cast<Expectation*>(Slot(region, sequence) + region.expected);
  auto* const mask = reinterpret_cast<uint64_t*>(expected + 1);
  const int64_t words = neuron::MaskWords(call.ffn);
  for (int64_t w = threadIdx.x; w < words; w += kThreads) {
    uint64_t bits = 0;
    for (int64_t row = 0; row < call.rows; ++row) bits |= ColdWord(call, words, row * words + w);
    mask[w] = bits;
  }
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x != 0) return;
  expected->layer = call.layer;
  SystemWord(*region.expectation_doorbell).store(sequence, ::cuda::memory_order_release);
}

// y += the answer. Every block waits for it by itself, and has its first sums at hand then. A failure makes
// the pass void: no block minds what another one makes of it.
template <typename Values>
__device__ void Merge(const ExchangeRegion& region, const ExchangeCall& call, ExchangeState* state,
                      ExchangeRecord* record, float* y) {
  constexpr int kAhead = 4;
  const uint64_t begin_ns = NowNs();
  const uint32_t sequence = state->sequence;
  const auto* const answer = reinterpret_cast<const Values*>(Slot(region, sequence) + region.y);
  auto* const sums = reinterpret_cast<Values*>(y);
  const int64_t count = call.rows * call.hidden / static_cast<int64_t>(sizeof(Values) / sizeof(float));
  const int64_t step = static_cast<int64_t>(gridDim.x) * kMergeThreads;
  int64_t first = static_cast<int64_t>(blockIdx.x) * kMergeThreads + threadIdx.x;
  Values before[kAhead], parts[kAhead];
  const auto for_each = [&](const auto& use) {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (first + a * step < count) use(a, first + a * step);
    }
  };
  for_each([&](int a, int64_t i) { before[a] = sums[i]; });
  if (!AwaitAnswer(region, sequence, state)) return;
  while (first < count) {
    for_each([&](int a, int64_t i) { parts[a] = __ldcv(answer + i); });
    if (first == 0) RecordAnswer(region, call, state, record, begin_ns);
    for_each([&](int a, int64_t i) { sums[i] = Sum(before[a], parts[a]); });
    first += kAhead * step;
    for_each([&](int a, int64_t i) { before[a] = sums[i]; });
  }
}

__global__ void __launch_bounds__(kMergeThreads)
    MergeColdKernel(ExchangeRegion region, ExchangeCall call, ExchangeState* state, ExchangeRecord* record,
                    float* y) {
  JoinChain();
  if (state->failure != ExchangeFailure::kNone) return;
  if (call.hidden % 4 == 0) {
    Merge<float4>(region, call, state, record, y);
  } else {
    Merge<float>(region, call, state, record, y);
  }
}

}  // namespace

cudaError_t SendCold(const ExchangeRegion& region, const ExchangeCall& call, ExchangeState* state,
                     cudaStream_t stream) {
  // A block has 4 KiB of x for batch 1; more blocks would only meet at the last one.
  constexpr int64_t kBlockFloats = 1024;
  constexpr int64_t kMostBlocks = 64;
  if (call.gate != nullptr) {
    const cudaError_t error = LaunchChained(ScanColdBits, 1, kScanThreads, 0, stream, call, state);
    if (error != cudaSuccess) return error;
  }
  const int64_t blocks = std::min(kMostBlocks, CeilDiv(call.rows * call.hidden, kBlockFloats));
  return LaunchChained(SendColdKernel, static_cast<unsigned>(blocks), kThreads, 0, stream, region, call,
                       state);
}

cudaError_t ExpectCold(const ExchangeRegion& region, const ExchangeCall& call, ExchangeState* state,
                       cudaStream_t stream) {
  return LaunchChained(ExpectColdKernel, 1, kThreads, 0, stream, region, call, state);
}

cudaError_t MergeCold(const ExchangeRegion& region, const ExchangeCall& call, ExchangeState* state,
                      ExchangeRecord* record, float* y, cudaStream_t stream) {
  // From the answer to the kernel after this one an H200 takes 9.7 us for 32 KiB with one block, 7.4 with
  // eight.
  constexpr int64_t kBlockFloats = 4 * kMergeThreads;
  constexpr int64_t kMostBlocks = 8;
  const int64_t blocks = std::min(kMostBlocks, CeilDiv(call.rows * call.hidden, kBlockFloats));
  return LaunchChained(MergeColdKernel, static_cast<unsigned>(blocks), kMergeThreads, 0, stream, region, call,
                       state, record, y);
}

}  // namespace isotherm::gpu_worker::cuda
