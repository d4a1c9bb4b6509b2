#ifndef ISOTHERM_GPU_WORKER_COLD_COLD_WORKER_H_
#define ISOTHERM_GPU_WORKER_COLD_COLD_WORKER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/exchange/channel.h"
#include "common/neuron/placement.h"
#include "isotherm/worker/v1/neuron.grpc.pb.h"

namespace isotherm::gpu_worker {

struct ColdWorkerOptions {
  std::string address;
  exchange::Transport transport = exchange::Transport::kAuto;
  std::string shm_directory = "/dev/shm";
  absl::Duration exchange_timeout = absl::Seconds(10);
  int spin_us = 0;
  std::string model_digest;
  exchange::Geometry geometry;
};

// The connection to the CPU worker: found, checked, told the placement, opened, and opened again after a
// loss. A channel that failed is dropped and never used again. Thread-compatible.
class ColdWorker {
 public:
  ColdWorker(ColdWorkerOptions options, neuron::Placement placement);

  // OK when a channel is open, opening one if need be; one attempt, bounded by a few seconds. Unavailable or
  // FailedPrecondition says what the worker lacks.
  absl::Status EnsureConnected();
  bool connected() const { return channel_ != nullptr && !channel_->failed(); }
  // Null unless connected.
  exchange::Channel* channel() const { return connected() ? channel_.get() : nullptr; }
  const std::string& address() const { return options_.address; }

  // How often each cold neuron fired since the channel was opened, [layers][ffn]; between exchanges.
  // Unavailable unless connected.
  absl::StatusOr<std::vector<std::vector<uint64_t>>> Firings();

 private:
  absl::Status CheckWorker();
  absl::Status AnnouncePlacement();
  absl::StatusOr<std::vector<std::vector<uint64_t>>> AskForFirings();

  const ColdWorkerOptions options_;
  const neuron::Placement placement_;
  const std::string placement_digest_;
  std::unique_ptr<worker::v1::NeuronService::Stub> stub_;
  std::unique_ptr<exchange::Channel> channel_;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_COLD_COLD_WORKER_H_
