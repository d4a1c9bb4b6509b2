#include "common/rpc/main.h"

#include <grpc/grpc.h>
#include <signal.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/command_line.h"
#include "common/base/host.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/exchange/channel.h"
#include "common/observe/log.h"
#include "common/rpc/channel.h"
#include "common/rpc/client_flags.h"
#include "common/rpc/server_flags.h"
#include "cpu_worker/store/model_fetch.h"
#include "cpu_worker/worker.h"

ABSL_FLAG(std::string, model, "", "Model file (GGUF), the same that the GPU worker serves.");
ABSL_FLAG(std::string, model_from, "",
          "Instead of --model: address of the GPU worker to copy the model from, host:port or unix:/path.");
ABSL_FLAG(std::string, model_dir, "/var/cache/isotherm",
          "Folder for the copy that --model-from makes; a copy that is there already is used.");
ABSL_FLAG(int, threads, 0, "Threads that compute. 0: physical cores less two, at least one.");
ABSL_FLAG(int, spin_us, -1,
          "How long threads spin for the next exchange before they sleep, in microseconds. -1: 50 on "
          "machines with more than four cores, else 0; while a step of a GPU is open, 5000.");
ABSL_FLAG(bool, pin, false, "Pin each thread to a core. For machines that run nothing else.");
ABSL_FLAG(std::vector<std::string>, listen, std::vector<std::string>({"127.0.0.1:7072"}),
          "Where the GPU worker connects: host:port or unix:/path, several separated by commas.");
ABSL_FLAG(std::string, metrics_listen, "127.0.0.1:9403",
          "Where Prometheus scrapes /metrics; empty for nowhere.");
ABSL_FLAG(std::string, health_listen, "",
          "Where grpc.health.v1 alone is answered, always in plain text (host:port), for probes that cannot "
          "speak TLS; empty for only where --listen says.");
ABSL_FLAG(std::string, exchange_transport, "auto",
          "How activations travel: shm (same host only), inline (inside gRPC messages), or auto, which takes "
          "shm where both "
          "sides share a host.");
ABSL_FLAG(std::string, shm_directory, "/dev/shm",
          "Where exchange regions are created; the same folder as the GPU worker's.");
ABSL_FLAG(absl::Duration, drain_timeout, absl::Seconds(10),
          "After SIGTERM, how long calls may go on before they are cancelled.");

namespace isotherm::cpu_worker {
namespace {

// Two cores are left to the GPU worker's driving thread and to the gateway.
constexpr int kCoresLeftToOthers = 2;
// Beside a GPU, which rings without waking anybody: longer than attention between two layers takes it.
constexpr int kDeviceSpinMicroseconds = 5000;

absl::StatusOr<WorkerOptions> OptionsFromFlags() {
  WorkerOptions options;
  options.model_path = absl::GetFlag(FLAGS_model);
  if (options.model_path.empty() == absl::GetFlag(FLAGS_model_from).empty()) {
    return base::UsageError(options.model_path.empty()
                                ? "--model is missing: name a GGUF file, or with --model-from a GPU worker"
                                : "--model and --model-from: use one of them");
  }
  const int cores = base::PhysicalCores();
  const int threads = absl::GetFlag(FLAGS_threads);
  if (threads < 0 || threads > 4096) {
    return base::UsageError(absl::StrCat("--threads=", threads, ": use 0 to 4096"));
  }
  options.threads = threads > 0 ? threads : std::max(cores - kCoresLeftToOthers, 1);
  const int spin_us = absl::GetFlag(FLAGS_spin_us);
  options.spin_us = spin_us >= 0 ? spin_us : base::ThreadPool::SharedSpinMicroseconds();
  options.pin = absl::GetFlag(FLAGS_pin);
  options.server.listen = absl::GetFlag(FLAGS_listen);
  if (options.server.listen.empty()) return base::UsageError("--listen is empty: name an address");
  options.server.metrics_listen = absl::GetFlag(FLAGS_metrics_listen);
  options.server.health_listen = absl::GetFlag(FLAGS_health_listen);
  options.server.drain_timeout = absl::GetFlag(FLAGS_drain_timeout);
  ISOTHERM_RETURN_IF_ERROR(rpc::ReadServerFlags(options.server));
  const absl::StatusOr<exchange::Transport> transport =
      exchange::ParseTransport(absl::GetFlag(FLAGS_exchange_transport));
  if (!transport.ok()) {
    return base::UsageError(
        absl::StrCat("--exchange-transport: ", std::string(transport.status().message())));
  }
  options.exchange.transport = *transport;
  options.exchange.shm_directory = absl::GetFlag(FLAGS_shm_directory);
  options.exchange.spin_us = options.spin_us;
  options.exchange.device_spin_us = spin_us >= 0 ? spin_us : kDeviceSpinMicroseconds;
  return options;
}

// SIGTERM and SIGINT are blocked and nothing serves yet that would take them.
bool StopIsPending() {
  sigset_t pending;
  return sigpending(&pending) == 0 &&
         (sigismember(&pending, SIGTERM) == 1 || sigismember(&pending, SIGINT) == 1);
}

absl::StatusOr<std::string> FetchFromGpuWorker(const std::string& address) {
  FetchOptions options;
  options.from = address;
  options.directory = absl::GetFlag(FLAGS_model_dir);
  options.cancelled = StopIsPending;
  ISOTHERM_RETURN_IF_ERROR(rpc::CheckReachedSafely("model-from", address));
  ISOTHERM_ASSIGN_OR_RETURN(const rpc::ClientCredentials credentials, rpc::CredentialsFromFlags());
  // gRPC stays up until the process ends: just after a connection was closed its shutdown may take ten
  // seconds.
  grpc_init();
  const auto source = worker::v1::ModelFileService::NewStub(rpc::MakeChannel(address, credentials));
  return FetchModel(*source, options);
}

absl::Status Run() {
  ISOTHERM_ASSIGN_OR_RETURN(WorkerOptions options, OptionsFromFlags());
  if (const std::string from = absl::GetFlag(FLAGS_model_from); !from.empty()) {
    const absl::StatusOr<std::string> fetched = FetchFromGpuWorker(from);
    if (absl::IsCancelled(fetched.status())) return absl::OkStatus();
    ISOTHERM_ASSIGN_OR_RETURN(options.model_path, fetched);
  }
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<Worker> worker, Worker::Create(options));
  return worker->ServeUntilSignal();
}

}  // namespace
}  // namespace isotherm::cpu_worker

int main(int argc, char** argv) {
  const isotherm::base::Program program = {
      .name = "cpu_worker",
      .summary =
          "Computes the cold neurons of a model: those that do not fit into the GPU worker's memory. It "
          "holds the gate, up and down rows of every neuron and, for each layer of a step, answers the GPU "
          "worker's question (inputs and a mask of the neurons wanted) with one partial sum a token. It "
          "keeps nothing between exchanges, so it may be restarted at any time.",
      .examples =
          "cpu_worker --model=models/tales/tales-q8_0.gguf\n"
          "    # on 127.0.0.1:7072, where the GPU worker looks for it\n"
          "cpu_worker --model=m.gguf --listen=unix:/run/isotherm/cpu.sock --threads=6 --pin\n"
          "    # on a Unix socket; then gpu_worker --cpu-worker=unix:/run/isotherm/cpu.sock\n"
          "cpu_worker --model=m.gguf --listen=0.0.0.0:7072 --tls-cert=cpu.pem --tls-key=cpu.key "
          "--tls-client-ca=ca.pem\n"
          "    # for a GPU worker on another machine (activations travel inside gRPC messages)\n"
          "cpu_worker --model-from=unix:/run/isotherm/gpu.sock --model-dir=/srv/isotherm\n"
          "    # without a copy of the model: it is fetched once",
      .groups = {{"Model", {"model", "model_from", "model_dir"}},
                 {"Threads", {"threads", "spin_us", "pin"}},
                 {"Exchange", {"exchange_transport", "shm_directory"}},
                 {"Serving", {"listen", "metrics_listen", "health_listen", "drain_timeout"}},
                 isotherm::rpc::AccessFlags(),
                 isotherm::rpc::ConnectionFlags(),
                 isotherm::rpc::LimitFlags()}};
  return isotherm::rpc::RunMain(program, argc, argv, isotherm::cpu_worker::Run);
}
