#include "cpu_worker/service/neuron_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"
#include "common/neuron/bundle.h"
#include "common/observe/log.h"
#include "common/observe/metrics.h"
#include "common/rpc/call.h"
#include "common/rpc/status.h"
#include "cpu_worker/service/placement_request.h"

namespace isotherm::cpu_worker {
namespace {

// A stream whose peer was killed ends within a wait slice or two; longer means that the peer lives.
constexpr absl::Duration kTakeOverPatience = absl::Seconds(2);
// A decode step takes tens of milliseconds, a prefill step seconds at most.
constexpr absl::Duration kDrainPatience = absl::Seconds(5);
// Of one answer of ReadNeurons; a fraction of what a message may have.
constexpr int64_t kMostReadBytes = int64_t{16} << 20;

observe::Gauge PlacementEpochGauge() {
  return observe::Registry::Global().GetGauge("isotherm_cpu_worker_placement_epoch",
                                              "Epoch of the placement last applied.");
}

}  // namespace

// The right to be the one open Exchange stream.
class NeuronService::StreamLease {
 public:
  static absl::StatusOr<std::unique_ptr<StreamLease>> Take(NeuronService* service,
                                                           grpc::ServerContext* context) {
    base::MutexLock lock(&service->mutex_);
    service->mutex_.AwaitWithTimeout(absl::Condition(service, &NeuronService::StreamIsDecided),
                                     kTakeOverPatience);
    // Whoever waits while the worker drains comes after the stream that Drain ends.
    if (service->executor_ == nullptr) return absl::UnavailableError(service->not_ready_cause_);
    if (service->open_stream_ != nullptr) {
      return absl::UnavailableError(
          absl::StrCat("busy: the GPU worker at ", service->open_stream_->peer(), " has an exchange open"));
    }
    service->open_stream_ = context;
    return std::unique_ptr<StreamLease>(new StreamLease(service, service->executor_));
  }
  ~StreamLease() {
    base::MutexLock lock(&service_->mutex_);
    service_->open_stream_ = nullptr;
  }
  StreamLease(const StreamLease&) = delete;
  StreamLease& operator=(const StreamLease&) = delete;

  NeuronExecutor* executor() const { return executor_; }

 private:
  StreamLease(NeuronService* service, NeuronExecutor* executor) : service_(service), executor_(executor) {}
  NeuronService* const service_;
  NeuronExecutor* const executor_;
};

NeuronService::NeuronService(const ServedModel& model, const exchange::ServerOptions& options)
    : model_(model), options_(options), instance_id_(base::RandomId()) {}

void NeuronService::SetNotReady(const std::string& cause) {
  base::MutexLock lock(&mutex_);
  if (draining_) return;
  executor_ = nullptr;
  not_ready_cause_ = cause;
}

void NeuronService::SetReady(NeuronExecutor* executor, double read_bandwidth,
                             std::optional<exchange::BundleFile> bundles) {
  base::MutexLock lock(&mutex_);
  if (draining_) return;
  executor_ = executor;
  bundles_ = std::move(bundles);
  read_bandwidth_ = read_bandwidth;
  not_ready_cause_.clear();
}

void NeuronService::Drain() {
  NeuronExecutor* executor;
  {
    base::MutexLock lock(&mutex_);
    draining_ = true;
    executor = std::exchange(executor_, nullptr);
    not_ready_cause_ = "draining";
  }
  if (executor != nullptr) executor->AwaitStepEnd(kDrainPatience);
  base::MutexLock lock(&mutex_);
  if (open_stream_ != nullptr) open_stream_->TryCancel();
}

grpc::Status NeuronService::GetNeuronWorker(grpc::ServerContext* context,
                                            const worker::v1::GetNeuronWorkerRequest*,
                                            worker::v1::GetNeuronWorkerResponse* response) {
  return rpc::Handle("NeuronService/GetNeuronWorker", context, [&]() -> absl::Status {
    response->set_instance_id(instance_id_);
    response->set_model_digest(model_.digest);
    response->set_layers(static_cast<uint32_t>(model_.layers));
    response->set_hidden_size(static_cast<uint32_t>(model_.hidden));
    response->set_ffn_size(static_cast<uint32_t>(model_.ffn));
    response->set_bundle_layout_version(neuron::kBundleLayoutVersion);
    response->set_threads(static_cast<uint32_t>(model_.threads));
    response->set_bundle_bytes(static_cast<uint64_t>(model_.bundle_bytes));
    base::MutexLock lock(&mutex_);
    response->set_ready(executor_ != nullptr);
    response->set_not_ready_cause(not_ready_cause_);
    response->set_read_bandwidth(read_bandwidth_);
    return absl::OkStatus();
  });
}

grpc::Status NeuronService::ApplyPlacement(grpc::ServerContext* context,
                                           const worker::v1::ApplyPlacementRequest* request,
                                           worker::v1::ApplyPlacementResponse* response) {
  return rpc::Handle("NeuronService/ApplyPlacement", context, [&]() -> absl::Status {
    ISOTHERM_RETURN_IF_ERROR(CheckModel(request->model_digest()));
    ISOTHERM_ASSIGN_OR_RETURN(neuron::Placement placement,
                              ParsePlacement(*request, model_.layers, model_.ffn));
    response->set_epoch(placement.epoch);
    response->set_digest(request->digest());
    // The first of a GPU worker is news, its moves later on are not.
    spdlog::log(placement.epoch == 1 ? spdlog::level::info : spdlog::level::debug,
                "placement {} (epoch {}): {:.1f} % of the neurons are this worker's", request->digest(),
                placement.epoch, 100.0 - 100.0 * placement.HotCount() / (model_.layers * model_.ffn));
    PlacementEpochGauge().Set(static_cast<double>(placement.epoch));
    base::MutexLock lock(&mutex_);
    placement_ = std::move(placement);
    return absl::OkStatus();
  });
}

absl::Status NeuronService::CheckModel(const std::string& digest) const {
  if (digest == model_.digest) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("the request is for the model with digest \"", digest,
                                                    "\", this worker has \"", model_.digest, "\""));
}

absl::StatusOr<exchange::ServerPolicy> NeuronService::Policy() const {
  base::MutexLock lock(&mutex_);
  if (!placement_.has_value()) {
    return absl::FailedPreconditionError("no placement yet: ApplyPlacement comes before Exchange");
  }
  exchange::ServerPolicy policy;
  policy.model_digest = model_.digest;
  policy.placement_epoch = placement_->epoch;
  policy.placement_digest = placement_->Digest();
  policy.hot = placement_->hot;
  policy.layers = model_.layers;
  policy.hidden = model_.hidden;
  policy.ffn = model_.ffn;
  policy.max_rows_limit = kMaxRows;
  policy.bundles = bundles_;
  return policy;
}

grpc::Status NeuronService::Exchange(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<worker::v1::ExchangeResponse, worker::v1::ExchangeRequest>* stream) {
  return rpc::Handle("NeuronService/Exchange", context, [&]() -> absl::Status {
    ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<StreamLease> lease, StreamLease::Take(this, context));
    lease->executor()->ClearFirings();
    spdlog::info("exchange opened by {}", context->peer());
    const absl::Status status = exchange::ServeExchange(
        context, stream, options_, [this] { return Policy(); }, lease->executor());
    spdlog::info("exchange with {} ended: {}", context->peer(),
                 status.ok() ? "closed" : std::string(status.message()));
    return status;
  });
}

grpc::Status NeuronService::ReadNeurons(grpc::ServerContext* context,
                                        const worker::v1::ReadNeuronsRequest* request,
                                        worker::v1::ReadNeuronsResponse* response) {
  return rpc::Handle("NeuronService/ReadNeurons", context, [&]() -> absl::Status {
    ISOTHERM_RETURN_IF_ERROR(CheckModel(request->model_digest()));
    if (request->layer() >= model_.layers) {
      return rpc::InvalidField("layer", absl::StrCat(request->layer(), " of ", model_.layers));
    }
    for (int i = 0; i < request->neurons_size(); ++i) {
      if (request->neurons(i) >= model_.ffn) {
        return rpc::InvalidField(absl::StrCat("neurons[", i, "]"),
                                 absl::StrCat(request->neurons(i), " of ", model_.ffn));
      }
    }
    const NeuronExecutor* executor;
    {
      base::MutexLock lock(&mutex_);
      if (executor_ == nullptr) return absl::UnavailableError(not_ready_cause_);
      executor = executor_;
    }
    const int64_t bytes = request->neurons_size() * executor->BundleBytes(request->layer());
    if (bytes > kMostReadBytes) {
      return rpc::InvalidField("neurons", absl::StrCat(bytes, " bytes of bundles, at most ", kMostReadBytes));
    }
    executor->CopyBundles(request->layer(), request->neurons(), *response->mutable_bundles());
    return absl::OkStatus();
  });
}

grpc::Status NeuronService::GetFiringCounts(grpc::ServerContext* context,
                                            const worker::v1::GetFiringCountsRequest*,
                                            worker::v1::GetFiringCountsResponse* response) {
  return rpc::Handle("NeuronService/GetFiringCounts", context, [&]() -> absl::Status {
    const NeuronExecutor* executor;
    {
      base::MutexLock lock(&mutex_);
      if (open_stream_ == nullptr) return absl::FailedPreconditionError("no exchange is open");
      if (executor_ == nullptr) return absl::UnavailableError(not_ready_cause_);
      executor = executor_;
    }
    for (const std::vector<uint64_t>& layer : executor->Firings()) {
      response->add_layers()->mutable_neurons()->Add(layer.begin(), layer.end());
    }
    return absl::OkStatus();
  });
}

}  // namespace isotherm::cpu_worker
