#include "cpu_worker/worker.h"

#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/guarded.h"
#include "common/base/status_macros.h"
#include "common/kernels/row_kernels.h"
#include "common/neuron/bandwidth.h"
#include "common/observe/log.h"
#include "common/observe/metrics.h"

namespace isotherm::cpu_worker {
namespace {

constexpr absl::Duration kBandwidthBudget = absl::Milliseconds(50);

ServedModel Describe(const model::Model& model, const StorePlan& plan, int threads) {
  const model::Hyperparameters& parameters = model.hyperparameters();
  return {model.digest(), parameters.layers, parameters.hidden, parameters.ffn, plan.bytes, threads};
}

absl::Status CheckFits(const model::Model& model, const StorePlan& plan, const WorkerOptions& options) {
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t available, options.available_memory());
  const model::Hyperparameters& parameters = model.hyperparameters();
  const int64_t workspace =
      neuron::FfnExecutor::WorkspaceBytes(options.threads, parameters.hidden, parameters.ffn, kMaxRows);
  return CheckMemory(options.model_path, {plan.bytes, workspace, available});
}

void PublishGauges(int64_t bundle_bytes, int threads, double read_bandwidth) {
  observe::Registry& registry = observe::Registry::Global();
  registry.GetGauge("isotherm_cpu_worker_bundle_bytes", "Memory that holds the neurons.")
      .Set(static_cast<double>(bundle_bytes));
  registry.GetGauge("isotherm_cpu_worker_threads", "Threads that compute.").Set(threads);
  registry
      .GetGauge("isotherm_cpu_worker_read_bandwidth_bytes_per_second",
                "Rate at which the threads read the neurons' memory, measured after loading.")
      .Set(read_bandwidth);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Worker>> Worker::Create(const WorkerOptions& options) {
  if (const char* reason = kernels::UnsupportedCpuReason()) return absl::FailedPreconditionError(reason);
  ISOTHERM_ASSIGN_OR_RETURN(std::unique_ptr<model::Model> model, model::Model::Open(options.model_path));
  ISOTHERM_ASSIGN_OR_RETURN(StorePlan plan, PlanStore(*model));
  ISOTHERM_RETURN_IF_ERROR(CheckFits(*model, plan, options));
  std::unique_ptr<Worker> worker(new Worker(options, std::move(model), std::move(plan)));
  ISOTHERM_ASSIGN_OR_RETURN(worker->server_, rpc::Server::Start(options.server, {&worker->service_}));
  worker->loader_ = std::thread(&Worker::LoadThenServe, worker.get());
  return worker;
}

Worker::Worker(const WorkerOptions& options, std::unique_ptr<model::Model> model, StorePlan plan)
    : options_(options),
      model_(std::move(model)),
      plan_(std::move(plan)),
      pool_({.threads = options.threads, .spin_us = options.spin_us, .pin = options.pin}),
      service_(Describe(*model_, plan_, options.threads), options.exchange) {}

Worker::~Worker() {
  stop_loading_ = true;
  if (loader_.joinable()) loader_.join();
}

void Worker::LoadThenServe() {
  const std::string cause = "loading model";
  service_.SetNotReady(cause);
  server_->SetServing(NeuronService::kName, false, cause);
  load_status_ = base::Guarded(cause.c_str(), [this] { return Load(); });
  if (load_status_.ok()) return;
  const std::string failure = "loading failed: " + std::string(load_status_.message());
  service_.SetNotReady(failure);
  server_->SetServing(NeuronService::kName, false, failure);
  server_->Shutdown();
}

absl::Status Worker::Load() {
  const absl::Time start = absl::Now();
  observe::Progress progress("loading " + model_->DisplayName(), plan_.bytes, "bytes");
  ISOTHERM_ASSIGN_OR_RETURN(store_,
                            Store::Load(*model_, std::move(plan_), pool_, [&](int64_t bytes) -> absl::Status {
                              progress.Advance(bytes);
                              return stop_loading_ ? absl::CancelledError("stopped") : absl::OkStatus();
                            }));
  progress.Finish();
  executor_ = std::make_unique<NeuronExecutor>(
      store_.get(), model_->hyperparameters(), &pool_,
      NeuronExecutor::Spin{options_.spin_us, options_.exchange.device_spin_us});
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  const double bandwidth =
      neuron::MeasureReadBandwidth(pool_, store_->data(), store_->bytes(), kBandwidthBudget);
  PublishGauges(store_->bytes(), options_.threads, bandwidth);
  spdlog::info("{}: {:.3f} GB of neurons ready in {:.2f} s; {} threads read them at {:.1f} GB/s, kernels {}",
               model_->DisplayName(), store_->bytes() * 1e-9, seconds, options_.threads, bandwidth * 1e-9,
               kernels::ActiveTarget());
  if (store_->file() && store_->huge_page_bytes() < store_->bytes()) {
    spdlog::warn(
        "only {:.3f} of the neurons' {:.3f} GB lie in huge pages, as free memory is in small pieces; the "
        "rest is read more slowly. Start again once memory was freed or compacted (vm.compact_memory)",
        store_->huge_page_bytes() * 1e-9, store_->bytes() * 1e-9);
  }
  if (store_->down_requantization_error() > 0) {
    spdlog::info("down weights were requantised by neuron to Q8_0: relative error {:.2e}",
                 store_->down_requantization_error());
  }
  service_.SetReady(executor_.get(), bandwidth, store_->file());
  server_->SetServing(NeuronService::kName, true, "");
  return absl::OkStatus();
}

absl::Status Worker::ServeUntilSignal() {
  const absl::Status served = server_->ServeUntilSignal([this] {
    stop_loading_ = true;
    service_.Drain();
  });
  loader_.join();
  ISOTHERM_RETURN_IF_ERROR(served);
  return absl::IsCancelled(load_status_) ? absl::OkStatus() : load_status_;
}

}  // namespace isotherm::cpu_worker
