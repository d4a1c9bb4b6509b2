#ifndef ISOTHERM_CPU_WORKER_SERVICE_NEURON_SERVICE_H_
#define ISOTHERM_CPU_WORKER_SERVICE_NEURON_SERVICE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/mutex.h"
#include "common/exchange/channel.h"
#include "common/neuron/placement.h"
#include "cpu_worker/execute/neuron_executor.h"
#include "isotherm/worker/v1/neuron.grpc.pb.h"

namespace isotherm::cpu_worker {

// What the worker serves; fixed from the start.
struct ServedModel {
  std::string digest;
  int64_t layers = 0;
  int64_t hidden = 0;
  int64_t ffn = 0;
  int64_t bundle_bytes = 0;
  int threads = 0;
};

// isotherm.worker.v1.NeuronService. Thread-safe.
//
// One GPU worker at a time: a second Exchange stream waits a moment for the first to end (its peer may just
// have been killed) and is then refused as Unavailable.
class NeuronService final : public worker::v1::NeuronService::Service {
 public:
  static constexpr char kName[] = "isotherm.worker.v1.NeuronService";

  NeuronService(const ServedModel& model, const exchange::ServerOptions& options);

  // Until SetReady, Exchange is refused as Unavailable with the cause. The executor and the bundles' file
  // outlive the service's calls. After Drain neither changes anything.
  void SetNotReady(const std::string& cause);
  void SetReady(NeuronExecutor* executor, double read_bandwidth, std::optional<exchange::BundleFile> bundles);
  // Ends the open Exchange stream after the step in progress, or after a while; no other opens.
  void Drain();

  grpc::Status GetNeuronWorker(grpc::ServerContext* context,
                               const worker::v1::GetNeuronWorkerRequest* request,
                               worker::v1::GetNeuronWorkerResponse* response) override;
  grpc::Status ApplyPlacement(grpc::ServerContext* context, const worker::v1::ApplyPlacementRequest* request,
                              worker::v1::ApplyPlacementResponse* response) override;
  grpc::Status Exchange(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<worker::v1::ExchangeResponse, worker::v1::ExchangeRequest>* stream) override;
  grpc::Status ReadNeurons(grpc::ServerContext* context, const worker::v1::ReadNeuronsRequest* request,
                           worker::v1::ReadNeuronsResponse* response) override;
  grpc::Status GetFiringCounts(grpc::ServerContext* context,
                               const worker::v1::GetFiringCountsRequest* request,
                               worker::v1::GetFiringCountsResponse* response) override;

 private:
  class StreamLease;

  // A stream may open now, or none will.
  bool StreamIsDecided() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return open_stream_ == nullptr || executor_ == nullptr;
  }
  absl::Status CheckModel(const std::string& digest) const;
  absl::StatusOr<exchange::ServerPolicy> Policy() const;

  const ServedModel model_;
  const exchange::ServerOptions options_;
  const std::string instance_id_;

  mutable base::Mutex mutex_;
  NeuronExecutor* executor_ ABSL_GUARDED_BY(mutex_) = nullptr;  // null: not ready
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  std::string not_ready_cause_ ABSL_GUARDED_BY(mutex_) = "starting";
  double read_bandwidth_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<exchange::BundleFile> bundles_ ABSL_GUARDED_BY(mutex_);
  std::optional<neuron::Placement> placement_ ABSL_GUARDED_BY(mutex_);
  // Of the open Exchange stream; null for none.
  grpc::ServerContext* open_stream_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace isotherm::cpu_worker

#endif  // ISOTHERM_CPU_WORKER_SERVICE_NEURON_SERVICE_H_
