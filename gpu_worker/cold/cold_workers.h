#ifndef ISOTHERM_GPU_WORKER_COLD_COLD_WORKERS_H_
#define ISOTHERM_GPU_WORKER_COLD_COLD_WORKERS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/neuron/placement.h"
#include "common/observe/metrics.h"
#include "gpu_worker/cold/cold_worker.h"
#include "gpu_worker/cold/split_channel.h"

namespace isotherm::gpu_worker {

struct ColdWorkersOptions {
  std::vector<std::string> addresses;  // at least one
  // Parts of the neurons by address; empty: by measured speed.
  std::vector<double> shares;
  ColdWorkerOptions worker;
};

// All CPU workers. Those that are there divide the cold neurons of every layer; when one is lost the others
// take over its neurons, and when it is back it gets a share again. Every change opens all exchanges anew,
// each worker with the placement restricted to what it owns. Thread-compatible but for Seek and ReadNeurons.
class ColdWorkers {
 public:
  ColdWorkers(ColdWorkersOptions options, neuron::Placement placement);

  // Looks for lost workers while others serve; takes seconds where a machine does not answer. From one thread
  // at a time, which need not be that of the other calls.
  void Seek();

  // EnsureConnected has nothing to do.
  bool settled() const;
  // Opens what can be opened, if anything has changed. OK when every neuron has an owner; otherwise
  // Unavailable or FailedPrecondition says what each worker lacks.
  absl::Status EnsureConnected();
  // How often exchanges were opened; with every time the workers count firings from zero.
  int64_t openings() const { return openings_; }

  // Null unless every neuron has an owner that is there. Valid until EnsureConnected changes something.
  exchange::Channel* channel() const;
  // The failed step can be sent again at once: some of the workers that shared it are left.
  bool others_left() const;
  int64_t count() const { return static_cast<int64_t>(workers_.size()); }

  // After a step that went well: its exchanges, for metrics and for the shares. `latencies` is what the
  // device saw.
  void Record(const std::vector<absl::Duration>& latencies);

  // The placement that exchanges follow.
  const neuron::Placement& placement() const { return placement_; }
  // Has all workers follow another one from the next exchange on; between steps. After an error the old one
  // holds.
  absl::Status Follow(neuron::Placement placement);
  // ColdWorker::ReadNeurons of the first worker that answers: every worker has all neurons. From any thread.
  absl::Status ReadNeurons(int64_t layer, absl::Span<const int32_t> neurons, int64_t bundle_bytes,
                           uint8_t* out) const;

  // How often each cold neuron fired since the exchanges were opened, [layers][ffn]; between exchanges.
  absl::StatusOr<std::vector<std::vector<uint64_t>>> Firings();

 private:
  struct Member {
    std::unique_ptr<ColdWorker> worker;
    // In any unit that all share; 0 until the worker is found.
    double speed = 0;
    // Since the exchanges were opened.
    int64_t exchanges = 0;
    absl::Duration latency;
    int64_t bytes = 0;
    observe::Gauge share, connected;
    observe::Counter exchange_bytes;
    observe::Histogram exchange_seconds;
  };

  bool Owns(size_t worker) const;
  std::vector<size_t> FoundWorkers() const;
  absl::StatusOr<std::vector<size_t>> FindAll();
  absl::Status Open(std::vector<size_t> owners);
  // The worker that could not be opened, or nothing.
  std::optional<size_t> OpenAs(const std::vector<size_t>& owners, absl::Status& error);
  std::vector<double> SharesFor(const std::vector<size_t>& owners);
  void Remeasure();
  void Publish();

  const ColdWorkersOptions options_;
  neuron::Placement placement_;
  std::vector<Member> workers_;
  // Ascending, and their shares.
  std::vector<size_t> owners_;
  std::vector<double> shares_;
  bool reshare_ = false;
  bool settled_shares_ = false;
  int64_t openings_ = 0;
  absl::Time opened_ = absl::InfinitePast();
  // Null with one owner. Its members' channels outlive it.
  std::unique_ptr<SplitChannel> split_;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_COLD_COLD_WORKERS_H_
