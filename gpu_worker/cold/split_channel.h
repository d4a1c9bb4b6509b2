#ifndef ISOTHERM_GPU_WORKER_COLD_SPLIT_CHANNEL_H_
#define ISOTHERM_GPU_WORKER_COLD_SPLIT_CHANNEL_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "common/exchange/channel.h"
#include "common/exchange/geometry.h"

namespace isotherm::gpu_worker {

// The channels of several CPU workers as one: every worker gets the inputs and the mask bits of the neurons
// it owns, and the answers are added in the order of the workers, so that repeats are bit-equal. It has no
// shared memory of its own, so devices drive it from the host. The first error of any channel ends this one;
// the others stay as they are.
class SplitChannel final : public exchange::Channel {
 public:
  struct Member {
    exchange::Channel* channel = nullptr;  // outlives this one
    std::vector<uint64_t> owned;           // bit j: neuron j is this worker's
  };
  // At least one member; every neuron is owned once.
  SplitChannel(const exchange::Geometry& geometry, std::vector<Member> members);

  // kInline where any member's is.
  exchange::Transport transport() const override;
  void BeginStep(uint64_t step) override;
  void EndStep() override;
  void Note(const worker::v1::SequenceNote& note) override;
  absl::StatusOr<exchange::RequestBuffers> Begin(const exchange::RequestHeader& header) override;
  absl::Status Send(int64_t gate_value_count) override;
  absl::StatusOr<Answer> Await() override;
  std::optional<exchange::SharedMemory> shared_memory() const override { return std::nullopt; }
  // Of the first member that shares them: each holds every neuron, its own or not.
  const exchange::SharedBundles* bundles() const override;
  // Only devices that ring by themselves count exchanges, and they need shared memory.
  uint32_t sequence() const override { return 0; }
  void Advance(uint32_t, int64_t, int64_t) override {}
  absl::Status Fail(const absl::Status& error) override;
  bool failed() const override;
  int64_t bytes_exchanged() const override;

  // How long the exchanges since the last call took, by member.
  std::vector<std::vector<absl::Duration>> TakeLatencies();

 private:
  absl::Status SendTo(const Member& member);

  const exchange::Geometry geometry_;
  const int64_t words_;
  const std::vector<Member> members_;
  absl::Status error_;
  exchange::RequestHeader header_;      // of the last exchange begun
  std::deque<int64_t> rows_in_flight_;  // of the exchanges sent and not awaited
  std::vector<float> x_;                // [max_rows, hidden]
  std::vector<uint64_t> masks_;         // [max_rows, words]
  std::vector<float> gate_values_;      // [max_rows * ffn] where the geometry has them
  std::vector<float> y_;                // [max_rows, hidden]
  std::vector<std::vector<absl::Duration>> latencies_;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_COLD_SPLIT_CHANNEL_H_
