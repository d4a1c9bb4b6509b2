#include "gpu_worker/cold/cold_worker.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/neuron/bundle.h"
#include "common/rpc/server.h"

namespace isotherm::gpu_worker {
namespace {

namespace v1 = worker::v1;

// Bounds every control call; the calls themselves take milliseconds.
constexpr absl::Duration kControlTimeout = absl::Seconds(3);

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + kControlTimeout));
}

absl::Status Annotate(const std::string& address, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("CPU worker at ", address, ": ", status.message()));
}

}  // namespace

ColdWorker::ColdWorker(ColdWorkerOptions options, neuron::Placement placement)
    : options_(std::move(options)),
      placement_(std::move(placement)),
      placement_digest_(placement_.Digest()),
      stub_(v1::NeuronService::NewStub(rpc::MakeChannel(options_.address))) {}

absl::Status ColdWorker::EnsureConnected() {
  if (connected()) return absl::OkStatus();
  channel_.reset();
  if (absl::Status status = CheckWorker(); !status.ok()) return Annotate(options_.address, status);
  if (absl::Status status = AnnouncePlacement(); !status.ok()) return Annotate(options_.address, status);
  exchange::ClientOptions client;
  client.transport = options_.transport;
  client.shm_directory = options_.shm_directory;
  client.exchange_timeout = options_.exchange_timeout;
  client.connect_timeout = kControlTimeout;
  client.spin_us = options_.spin_us;
  client.model_digest = options_.model_digest;
  client.placement_epoch = placement_.epoch;
  client.placement_digest = placement_digest_;
  client.geometry = options_.geometry;
  absl::StatusOr<std::unique_ptr<exchange::Channel>> channel = exchange::Connect(stub_.get(), client);
  if (!channel.ok()) return Annotate(options_.address, channel.status());
  channel_ = *std::move(channel);
  spdlog::info("CPU worker at {} connected, transport {}", options_.address,
               exchange::TransportName(channel_->transport()));
  return absl::OkStatus();
}

absl::Status ColdWorker::CheckWorker() {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::GetNeuronWorkerResponse worker;
  ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(stub_->GetNeuronWorker(&context, {}, &worker)));
  if (!worker.ready()) return absl::UnavailableError(absl::StrCat("not ready: ", worker.not_ready_cause()));
  if (worker.model_digest() != options_.model_digest) {
    return absl::FailedPreconditionError(absl::StrCat("it serves a model with digest ", worker.model_digest(),
                                                      ", this worker one with digest ", options_.model_digest,
                                                      "; start both with the same file"));
  }
  if (worker.bundle_layout_version() != neuron::kBundleLayoutVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("its bundle layout has version ", worker.bundle_layout_version(), ", this worker's ",
                     neuron::kBundleLayoutVersion, "; run the same release on both sides"));
  }
  return absl::OkStatus();
}

absl::Status ColdWorker::AnnouncePlacement() {
  v1::ApplyPlacementRequest request;
  request.set_model_digest(options_.model_digest);
  request.set_epoch(placement_.epoch);
  request.set_digest(placement_digest_);
  for (const std::vector<uint64_t>& hot : placement_.hot) {
    request.add_layers()->set_hot_mask(hot.data(), hot.size() * sizeof(uint64_t));
  }
  grpc::ClientContext context;
  SetDeadline(context);
  v1::ApplyPlacementResponse response;
  return rpc::FromGrpc(stub_->ApplyPlacement(&context, request, &response));
}

absl::StatusOr<std::vector<std::vector<uint64_t>>> ColdWorker::Firings() {
  if (!connected()) return absl::UnavailableError("the CPU worker is not connected");
  auto firings = AskForFirings();
  if (!firings.ok()) return Annotate(options_.address, firings.status());
  return firings;
}

absl::StatusOr<std::vector<std::vector<uint64_t>>> ColdWorker::AskForFirings() {
  grpc::ClientContext context;
  SetDeadline(context);
  v1::GetFiringCountsResponse response;
  ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(stub_->GetFiringCounts(&context, {}, &response)));
  if (response.layers_size() != placement_.layers()) {
    return absl::DataLossError(absl::StrCat("it sent firing counts of ", response.layers_size(),
                                            " layers, the model has ", placement_.layers()));
  }
  std::vector<std::vector<uint64_t>> firings;
  for (const v1::LayerFiringCounts& layer : response.layers()) {
    if (layer.neurons_size() != placement_.ffn) {
      return absl::DataLossError(absl::StrCat("it sent firing counts of ", layer.neurons_size(),
                                              " neurons, a layer has ", placement_.ffn));
    }
    firings.emplace_back(layer.neurons().begin(), layer.neurons().end());
  }
  return firings;
}

}  // namespace isotherm::gpu_worker
