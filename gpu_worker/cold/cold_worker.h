#ifndef ISOTHERM_GPU_WORKER_COLD_COLD_WORKER_H_
#define ISOTHERM_GPU_WORKER_COLD_COLD_WORKER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/exchange/channel.h"
#include "common/neuron/placement.h"
#include "common/rpc/channel.h"
#include "isotherm/worker/v1/neuron.grpc.pb.h"

namespace isotherm::gpu_worker {

// What holds for every CPU worker.
struct ColdWorkerOptions {
  rpc::ClientCredentials credentials;
  exchange::Transport transport = exchange::Transport::kAuto;
  std::string shm_directory = "/dev/shm";
  absl::Duration exchange_timeout = absl::Seconds(10);
  int spin_us = 0;
  // Inline frames carry BF16.
  bool bf16_activations = false;
  std::string model_digest;
  exchange::Geometry geometry;
};

// The connection to one CPU worker: found, checked, told its placement, opened. A channel that failed is
// never used again. Thread-compatible but for Find, found, resting and ReadNeurons.
class ColdWorker {
 public:
  ColdWorker(const std::string& address, const ColdWorkerOptions& options);

  // Asks the worker whether it is there, ready and fit for the model; takes a few seconds at most.
  // Unavailable or FailedPrecondition says what it lacks. From any thread.
  absl::Status Find();
  // The last Find went well and the worker was not lost since.
  bool found() const { return found_; }
  // It was there but could not be opened a moment ago, because it serves someone else for one: each attempt
  // may hold up other workers for seconds, so the next should wait. From any thread.
  bool resting() const;
  // Bytes a second that the worker reads, as it said when it was found last; 0: it did not say.
  double read_bandwidth() const { return read_bandwidth_; }

  // Announces a placement and opens an exchange for it, in place of the one before; one attempt, a few
  // seconds at most. On error the worker counts as lost and rests.
  absl::Status Open(const neuron::Placement& placement);
  // The channel is gone and so is, as far as known, the worker.
  void Lose();

  bool connected() const { return channel_ != nullptr && !channel_->failed(); }
  // Null unless connected.
  exchange::Channel* channel() const { return connected() ? channel_.get() : nullptr; }
  const std::string& address() const { return address_; }

  // Has the worker follow a placement from the next exchange on that names its epoch; between steps.
  absl::Status Follow(const neuron::Placement& placement);
  // Writes the bundles of these neurons, each of `bundle_bytes` bytes, one after another to `out`. From any
  // thread.
  absl::Status ReadNeurons(int64_t layer, absl::Span<const int32_t> neurons, int64_t bundle_bytes,
                           uint8_t* out) const;

  // How often each neuron fired there since the channel was opened, [layers][ffn]; between exchanges.
  // Unavailable unless connected.
  absl::StatusOr<std::vector<std::vector<uint64_t>>> Firings();

 private:
  absl::Status Check();
  absl::Status Announce(const neuron::Placement& placement, const std::string& digest);
  absl::Status OpenExchange(const neuron::Placement& placement);
  absl::StatusOr<std::vector<std::vector<uint64_t>>> AskForFirings();

  const std::string address_;
  const ColdWorkerOptions options_;
  const std::unique_ptr<worker::v1::NeuronService::Stub> stub_;
  std::atomic<bool> found_{false};
  std::atomic<double> read_bandwidth_{0};
  std::atomic<int64_t> rests_until_ns_{0};  // Unix time
  std::unique_ptr<exchange::Channel> channel_;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_COLD_COLD_WORKER_H_
