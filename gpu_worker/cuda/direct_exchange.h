#ifndef ISOTHERM_GPU_WORKER_CUDA_DIRECT_EXCHANGE_H_
#define ISOTHERM_GPU_WORKER_CUDA_DIRECT_EXCHANGE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/exchange/channel.h"
#include "gpu_worker/cuda/runtime.h"
#include "gpu_worker/device/device.h"
#include "gpu_worker/kernels/merge_and_normalize.h"

namespace isotherm::gpu_worker::cuda {

// Exchanges that the device makes by itself through a channel's shared memory, which is registered with the
// driver while this object lives. One thread.
class DirectExchange {
 public:
  // Null where the channel has no shared memory. The channel outlives the result.
  static absl::StatusOr<std::unique_ptr<DirectExchange>> Attach(exchange::Channel& channel, int64_t layers);
  DirectExchange(const DirectExchange&) = delete;
  DirectExchange& operator=(const DirectExchange&) = delete;

  // Enqueues what the exchanges of a pass start from.
  absl::Status BeginPass(uint64_t step, uint64_t placement_epoch, cudaStream_t stream);
  // The call without its scratch.
  cudaError_t Send(ExchangeCall call, cudaStream_t stream);
  cudaError_t Expect(const ExchangeCall& call, cudaStream_t stream);
  cudaError_t Merge(const ExchangeCall& call, float* y, cudaStream_t stream);
  cudaError_t MergeAndNormalize(const ExchangeCall& call, const RowAddend& hot, const RowNorm& norm, float* y,
                                float* out, cudaStream_t stream);
  // Enqueues the way back of what became of them; call Finish once the stream is idle.
  absl::Status EndPass(cudaStream_t stream);
  // Adds to the statistics what a pass of `rows` rows did. The failure of an exchange, which is the end of
  // the channel.
  absl::Status Finish(int64_t rows, PassStatistics& statistics);
  // Of the pass that finished last, for each exchange: from ring to answer, less the CPU worker's computing.
  std::vector<absl::Duration> Overheads() const;

 private:
  DirectExchange(exchange::Channel& channel, const exchange::SharedMemory& memory, int64_t layers)
      : channel_(channel), memory_(memory), layers_(layers) {}
  absl::Status Register();
  ExchangeState* state() const { return static_cast<ExchangeState*>(state_.get()); }
  ExchangeRecord* records() const { return reinterpret_cast<ExchangeRecord*>(state() + 1); }
  int64_t StateBytes() const;

  exchange::Channel& channel_;
  const exchange::SharedMemory memory_;
  const int64_t layers_;
  std::shared_ptr<void> registration_;
  ExchangeRegion region_;
  // An ExchangeState and a record for each layer, on both sides.
  DeviceMemory state_;
  PinnedMemory host_state_;
  DeviceMemory gate_offsets_;
};

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_CUDA_DIRECT_EXCHANGE_H_
