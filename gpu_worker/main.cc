#include "common/rpc/main.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <functional>
#include <iostream>
#include <latch>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/flags/flag.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/host.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/rpc/client_flags.h"
#include "common/rpc/server.h"
#include "common/rpc/server_flags.h"
#include "gpu_worker/cuda/make_cuda_device.h"
#include "gpu_worker/host/host_device.h"
#include "gpu_worker/service/model_file_service.h"
#include "gpu_worker/service/runner_service.h"

ABSL_FLAG(std::string, model, "", "Model file (GGUF).");
ABSL_FLAG(std::string, device, "host",
          "What computes: host (CPU kernels) or cuda (the first visible NVIDIA GPU).");
ABSL_FLAG(
    std::vector<std::string>, devices, {},
    "GPUs that share the layers, by number: 0,1 has the first half on GPU 0. Each gets an equal part of "
    "--vram-budget. On device host the numbers only say how many parts there are. Empty: one device.");
ABSL_FLAG(bool, attention_offload, false,
          "Where attention, KV cache and predictor of all layers do not fit --vram-budget, have the first "
          "layers' on the CPU, as few as will do; the CPU worker then computes their neurons.");
ABSL_FLAG(double, vram_budget, 0,
          "GiB for everything this worker holds: attention, head, KV cache, predictor, workspace, then hot "
          "neurons. 0: all neurons are hot.");
ABSL_FLAG(bool, plan_only, false,
          "Check that the model fits, print what would be hot and what the memory would go to, and exit.");
ABSL_FLAG(
    bool, time_operators, false,
    "Device cuda: time the operators of decode steps, one after another, and log the times at the end.");
ABSL_FLAG(int, threads, 0, "Threads of device host, and for loading. 0: one a physical core.");
ABSL_FLAG(int64_t, ctx, 0, "Most tokens of a sequence, prompt and completion. 0: the model's, at most 4096.");
ABSL_FLAG(int64_t, kv_tokens, 0,
          "Tokens the KV cache holds, all sequences together. 0: sixteen times --ctx.");
ABSL_FLAG(std::string, kv_type, "f16", "KV cache entries: f16, q8_0 or f32.");
ABSL_FLAG(int64_t, max_prefill_rows, 0,
          "Most prompt tokens of one step. 0: 512 on device cuda, which brings the cold neurons over once a "
          "step, else 256.");
ABSL_FLAG(int64_t, stream_rows, isotherm::gpu_worker::kDefaultStreamRows,
          "Device cuda: from so many tokens of a step on, the cold neurons of a CPU worker on the same host "
          "are brought to the GPU instead of being computed there. 0: never.");
ABSL_FLAG(
    std::string, bus_share, "auto",
    "Device cuda: share of the cold neurons, from 0 to 1, that the GPU computes itself in steps of up to 16 "
    "tokens, reading them over the bus from the memory of a CPU worker on the same host. auto: 0.25 where a "
    "weight takes less than a byte, else 0.1875.");
ABSL_FLAG(
    std::string, look_ahead, "auto",
    "Tell the CPU worker a layer early which neurons it will probably be asked for, so that it has them in "
    "its caches: on, off, or auto, which is on for device cuda. Shared memory and up to 16 sequences.");
ABSL_FLAG(
    std::string, step_ahead, "auto",
    "Compute the next token of a sequence that is alone and decoded greedily while the gateway still has the "
    "last one in hand: on, off, or auto, which is on for device cuda.");
ABSL_FLAG(int64_t, max_decode_rows, 64, "Most sequences decoded in one step.");
ABSL_FLAG(
    std::string, micro_batches, "auto",
    "Device host: 2 divides the sequences of a decode step in two groups, so that one is computed here while "
    "the CPU worker, or the wire to it, has the other; 1 keeps them together; auto times both for up to 16 "
    "sequences and takes the faster, with the same text. Device cuda keeps them together.");
ABSL_FLAG(
    std::string, predictor, "auto",
    "Which neurons to compute: auto, all, gate, sketch, lowrank, or the address of a PredictorService.");
ABSL_FLAG(double, predictor_threshold_shift, 0,
          "Added to the score below which a neuron is skipped (sketch, lowrank); negative computes more.");
ABSL_FLAG(
    std::string, placement, "",
    "Index file of PowerInfer (MODEL.generated.gpuidx) whose hot neurons are taken. Empty: the plan is made "
    "here.");
ABSL_FLAG(
    std::string, profile, "",
    "Firing counts to place neurons by, as 'isotherm profile' writes them. Empty: MODEL.profile.gguf, or "
    "those in the model file.");
ABSL_FLAG(std::string, profile_dir, "", "Where MODEL.profile.gguf lies. Empty: beside the model.");
ABSL_FLAG(
    bool, save_profile, true,
    "On SIGTERM save the firings counted while serving as MODEL.profile.gguf, unless there are others.");
ABSL_FLAG(std::string, adapt, "off",
          "Whether hot neurons make way for cold ones that fire more often, as counted while serving: on or "
          "off. Without effect with --placement.");
ABSL_FLAG(int64_t, adapt_interval, isotherm::neuron::kMoveInterval,
          "Tokens between two looks at the counts for --adapt.");
ABSL_FLAG(std::vector<std::string>, cpu_worker, std::vector<std::string>({"127.0.0.1:7072"}),
          "Address of the CPU worker: host:port or unix:/path. Several, separated by commas, share the cold "
          "neurons of every layer; while one is away the others do its part.");
ABSL_FLAG(std::vector<std::string>, cpu_worker_shares, {},
          "How several CPU workers share, one number each: 3,1 gives the first three quarters. Empty: by "
          "measured speed.");
ABSL_FLAG(std::string, exchange_transport, "auto", "auto, shm (same host only) or inline (gRPC messages).");
ABSL_FLAG(
    std::string, exchange_activations, "f32",
    "What inline messages carry: f32, or bf16, which halves the bytes on the wire and rounds inputs and "
    "answers to eight bits. Shared memory carries f32.");
ABSL_FLAG(std::string, shm_directory, "/dev/shm",
          "Where exchange regions appear, and memory for logits; the same folder as the CPU worker's and the "
          "gateway's.");
ABSL_FLAG(absl::Duration, exchange_timeout, absl::Seconds(10),
          "After this long without an answer the CPU worker counts as lost.");
ABSL_FLAG(
    int, spin_us, -1,
    "How long threads spin for work before they sleep. -1: 200 without --vram-budget and --placement, "
    "as no CPU worker then wants the cores; with one 50 on machines with more than four cores, else 0.");
ABSL_FLAG(std::string, inject_device_fault, "",
          "For trying out what follows: lost:N loses the device in its Nth pass, memory:N lets it run out of "
          "memory there. A pass is a decode step or a chunk of a prompt.");
ABSL_FLAG(std::string, listen, "127.0.0.1:7071",
          "Where the gateway connects: host:port or unix:/path, several separated by commas.");
ABSL_FLAG(std::string, metrics_listen, "127.0.0.1:9402",
          "Address of the Prometheus endpoint; empty for none.");
ABSL_FLAG(std::string, health_listen, "",
          "Where grpc.health.v1 alone is answered, always in plain text (host:port), for probes that cannot "
          "speak TLS; empty for only where --listen says.");
ABSL_FLAG(absl::Duration, drain_timeout, absl::Seconds(30),
          "After SIGTERM, how long calls may go on before they are cancelled.");

namespace isotherm::gpu_worker {
namespace {

// Bounds that keep every product of sizes far from overflow; what fits the machine is decided by its memory.
constexpr int64_t kMostTokens = int64_t{1} << 30;
constexpr int64_t kMostRows = 4096;  // the exchange's own limit
constexpr int64_t kMostThreads = 4096;
constexpr size_t kMostCpuWorkers = 32;  // more would each get less than the least share
constexpr double kMostShare = 1'000'000;

constexpr char kService[] = "isotherm.worker.v1.ModelRunnerService";

// A layer is a dozen fork-joins of tens of microseconds: threads that sleep between them cost a tenth of the
// speed (14.5 against 13.1 tokens/s with 1.9 GB of F16 on two cores), threads that spin while a CPU worker
// waits for the core cost more.
int SpinMicroseconds() {
  const int spin = absl::GetFlag(FLAGS_spin_us);
  if (spin >= 0) return spin;
  const bool all_hot = absl::GetFlag(FLAGS_vram_budget) == 0 && absl::GetFlag(FLAGS_placement).empty();
  if (all_hot) return 200;
  return base::ThreadPool::SharedSpinMicroseconds();
}

absl::StatusOr<kernels::KvType> KvTypeFromFlag() {
  const std::string name = absl::GetFlag(FLAGS_kv_type);
  if (name == "f16") return kernels::KvType::kF16;
  if (name == "q8_0") return kernels::KvType::kQ8_0;
  if (name == "f32") return kernels::KvType::kF32;
  return base::UsageError(absl::StrCat("--kv-type=", name, ": use f16, q8_0 or f32"));
}

absl::Status ReadPredictorFlag(EngineOptions& options) {
  const std::string name = absl::GetFlag(FLAGS_predictor);
  if (name == "auto") return absl::OkStatus();
  if (absl::StrContains(name, ':')) {
    options.predictor_address = name;
    return rpc::CheckReachedSafely("predictor", name);
  }
  absl::StatusOr<PredictorKind> kind = ParsePredictorKind(name);
  if (!kind.ok()) return base::UsageError(absl::StrCat("--predictor: ", kind.status().message()));
  options.predictor = *kind;
  return absl::OkStatus();
}

absl::StatusOr<std::optional<PlannedFault>> PlannedFaultFromFlag() {
  const std::string text = absl::GetFlag(FLAGS_inject_device_fault);
  if (text.empty()) return std::nullopt;
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  PlannedFault planned;
  if (parts.size() != 2 || (parts[0] != "lost" && parts[0] != "memory") ||
      !absl::SimpleAtoi(parts[1], &planned.pass) || planned.pass < 1) {
    return base::UsageError(
        absl::StrCat("--inject-device-fault=", text, ": use lost:N or memory:N, N from 1 on"));
  }
  if (parts[0] == "memory") planned.fault = DeviceFault::kOutOfMemory;
  return planned;
}

absl::StatusOr<int64_t> MicroBatchesFromFlag() {
  const std::string text = absl::GetFlag(FLAGS_micro_batches);
  if (text == "auto") return 0;
  if (text == "1" || text == "2") return text[0] - '0';
  return base::UsageError(absl::StrCat("--micro-batches=", text, ": use auto, 1 or 2"));
}

int64_t MaxPrefillRows() {
  const int64_t rows = absl::GetFlag(FLAGS_max_prefill_rows);
  if (rows != 0) return rows;
  return absl::GetFlag(FLAGS_device) == "cuda" ? 512 : 256;
}

absl::Status RequireBetween(const char* flag, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return base::UsageError(absl::StrCat("--", flag, "=", value, ": must be between ", least, " and ", most));
}

absl::Status RequireOnOffOrAuto(const char* flag, const std::string& value) {
  if (value == "on" || value == "off" || value == "auto") return absl::OkStatus();
  return base::UsageError(absl::StrCat("--", flag, "=", value, ": use on, off or auto"));
}

absl::StatusOr<std::optional<double>> BusShareFromFlag() {
  const std::string text = absl::GetFlag(FLAGS_bus_share);
  if (text == "auto") return std::nullopt;
  double share = 0;
  if (absl::SimpleAtod(text, &share) && share >= 0 && share <= 1) return share;
  return base::UsageError(absl::StrCat("--bus-share=", text, ": use auto or a number from 0 to 1"));
}

absl::Status ReadCpuWorkerFlags(ColdWorkersOptions& options) {
  options.addresses = absl::GetFlag(FLAGS_cpu_worker);
  std::set<std::string> distinct;
  for (const std::string& address : options.addresses) {
    if (address.empty() || !distinct.insert(address).second) {
      return base::UsageError(
          absl::StrCat("--cpu-worker: '", address, "' is ", address.empty() ? "no address" : "named twice"));
    }
    ISOTHERM_RETURN_IF_ERROR(rpc::CheckReachedSafely("cpu-worker", address));
  }
  if (options.addresses.empty()) return base::UsageError("--cpu-worker is empty: name an address");
  for (const std::string& text : absl::GetFlag(FLAGS_cpu_worker_shares)) {
    double share = 0;
    if (!absl::SimpleAtod(text, &share) || !(share > 0 && share <= kMostShare)) {
      return base::UsageError(
          absl::StrCat("--cpu-worker-shares: '", text, "' is not a number above 0 and up to ", kMostShare));
    }
    options.shares.push_back(share);
  }
  if (!options.shares.empty() && options.shares.size() != options.addresses.size()) {
    return base::UsageError(absl::StrCat("--cpu-worker-shares has ", options.shares.size(),
                                         " numbers, --cpu-worker ", options.addresses.size(), " addresses"));
  }
  if (options.addresses.size() > kMostCpuWorkers) {
    return base::UsageError(absl::StrCat("--cpu-worker: at most ", kMostCpuWorkers, " addresses"));
  }
  return absl::OkStatus();
}

absl::Status ReadExchangeFlags(ColdWorkerOptions& options) {
  ISOTHERM_ASSIGN_OR_RETURN(options.credentials, rpc::CredentialsFromFlags());
  absl::StatusOr<exchange::Transport> transport =
      exchange::ParseTransport(absl::GetFlag(FLAGS_exchange_transport));
  if (!transport.ok())
    return base::UsageError(absl::StrCat("--exchange-transport: ", transport.status().message()));
  options.transport = *transport;
  const std::string activations = absl::GetFlag(FLAGS_exchange_activations);
  if (activations != "f32" && activations != "bf16") {
    return base::UsageError(absl::StrCat("--exchange-activations=", activations, ": use f32 or bf16"));
  }
  options.bf16_activations = activations == "bf16";
  options.shm_directory = absl::GetFlag(FLAGS_shm_directory);
  options.exchange_timeout = absl::GetFlag(FLAGS_exchange_timeout);
  options.spin_us = SpinMicroseconds();
  return absl::OkStatus();
}

absl::StatusOr<EngineOptions> OptionsFromFlags() {
  EngineOptions options;
  options.model_path = absl::GetFlag(FLAGS_model);
  if (options.model_path.empty()) return base::UsageError("--model is missing: name a GGUF file");
  if (const std::string device = absl::GetFlag(FLAGS_device); device != "host" && device != "cuda") {
    return base::UsageError(absl::StrCat("--device=", device, ": use host or cuda"));
  }
  options.runner.context = absl::GetFlag(FLAGS_ctx);
  options.runner.kv_tokens = absl::GetFlag(FLAGS_kv_tokens);
  options.runner.max_prefill_rows = MaxPrefillRows();
  options.runner.max_decode_rows = absl::GetFlag(FLAGS_max_decode_rows);
  options.runner.predictor_threshold_shift =
      static_cast<float>(absl::GetFlag(FLAGS_predictor_threshold_shift));
  ISOTHERM_RETURN_IF_ERROR(RequireBetween("ctx", options.runner.context, 0, kMostTokens));
  ISOTHERM_RETURN_IF_ERROR(RequireBetween("kv-tokens", options.runner.kv_tokens, 0, kMostTokens));
  ISOTHERM_RETURN_IF_ERROR(RequireBetween("max-prefill-rows", options.runner.max_prefill_rows, 1, kMostRows));
  ISOTHERM_RETURN_IF_ERROR(RequireOnOffOrAuto("look-ahead", absl::GetFlag(FLAGS_look_ahead)));
  const std::string step_ahead = absl::GetFlag(FLAGS_step_ahead);
  ISOTHERM_RETURN_IF_ERROR(RequireOnOffOrAuto("step-ahead", step_ahead));
  options.step_ahead = step_ahead == "on" || (step_ahead == "auto" && absl::GetFlag(FLAGS_device) == "cuda");
  ISOTHERM_RETURN_IF_ERROR(RequireBetween("stream-rows", absl::GetFlag(FLAGS_stream_rows), 0, kMostRows));
  ISOTHERM_RETURN_IF_ERROR(BusShareFromFlag().status());
  ISOTHERM_RETURN_IF_ERROR(RequireBetween("max-decode-rows", options.runner.max_decode_rows, 1, kMostRows));
  ISOTHERM_RETURN_IF_ERROR(RequireBetween("threads", absl::GetFlag(FLAGS_threads), 0, kMostThreads));
  ISOTHERM_ASSIGN_OR_RETURN(options.runner.kv_type, KvTypeFromFlag());
  ISOTHERM_ASSIGN_OR_RETURN(options.runner.planned_fault, PlannedFaultFromFlag());
  ISOTHERM_ASSIGN_OR_RETURN(options.runner.micro_batches, MicroBatchesFromFlag());
  const double budget = absl::GetFlag(FLAGS_vram_budget);
  if (!(budget >= 0 && budget <= 1 << 20))
    return base::UsageError("--vram-budget: a number of GiB is expected");
  if (budget > 0) options.runner.budget_bytes = static_cast<int64_t>(budget * 1024 * 1024 * 1024);
  ISOTHERM_RETURN_IF_ERROR(ReadPredictorFlag(options));
  options.placement_path = absl::GetFlag(FLAGS_placement);
  options.profile.path = absl::GetFlag(FLAGS_profile);
  options.profile.directory = absl::GetFlag(FLAGS_profile_dir);
  options.profile.save = absl::GetFlag(FLAGS_save_profile);
  const std::string adapt = absl::GetFlag(FLAGS_adapt);
  if (adapt != "on" && adapt != "off") return base::UsageError("--adapt=" + adapt + ": use on or off");
  options.adapt = adapt == "on";
  options.adapt_interval = absl::GetFlag(FLAGS_adapt_interval);
  ISOTHERM_RETURN_IF_ERROR(RequireBetween("adapt-interval", options.adapt_interval, 1, kMostTokens));
  ISOTHERM_RETURN_IF_ERROR(ReadExchangeFlags(options.cold.worker));
  ISOTHERM_RETURN_IF_ERROR(ReadCpuWorkerFlags(options.cold));
  return options;
}

absl::StatusOr<std::vector<int>> DeviceNumbersFromFlag() {
  std::vector<int> numbers;
  for (const std::string& text : absl::GetFlag(FLAGS_devices)) {
    int number = 0;
    if (!absl::SimpleAtoi(text, &number) || number < 0) {
      return base::UsageError(absl::StrCat("--devices: '", text, "' is not the number of a GPU"));
    }
    if (std::count(numbers.begin(), numbers.end(), number) > 0) {
      return base::UsageError(absl::StrCat("--devices names ", number, " twice"));
    }
    numbers.push_back(number);
  }
  if (numbers.empty()) numbers.push_back(0);
  return numbers;
}

absl::StatusOr<EngineDevices> MakeDevices(const std::vector<int>& numbers, int threads) {
  const auto make_host = [threads] {
    return std::make_unique<HostDevice>(
        HostDeviceOptions{.threads = threads,
                          .spin_us = SpinMicroseconds(),
                          .look_ahead = absl::GetFlag(FLAGS_look_ahead) == "on"});
  };
  ISOTHERM_ASSIGN_OR_RETURN(const std::optional<double> bus_share, BusShareFromFlag());
  EngineDevices made;
  for (const int number : numbers) {
    if (absl::GetFlag(FLAGS_device) == "host") {
      made.devices.push_back(make_host());
      continue;
    }
    ISOTHERM_ASSIGN_OR_RETURN(made.devices.emplace_back(),
                              MakeCudaDevice({.number = number,
                                              .loader_threads = threads,
                                              .stream_rows = absl::GetFlag(FLAGS_stream_rows),
                                              .bus_share = bus_share,
                                              .look_ahead = absl::GetFlag(FLAGS_look_ahead) != "off",
                                              .time_operators = absl::GetFlag(FLAGS_time_operators)}));
  }
  if (absl::GetFlag(FLAGS_attention_offload)) made.offload_to = make_host();
  return made;
}

absl::StatusOr<rpc::ServerOptions> ServerOptionsFromFlags() {
  rpc::ServerOptions options;
  options.listen = absl::StrSplit(absl::GetFlag(FLAGS_listen), ',', absl::SkipEmpty());
  options.metrics_listen = absl::GetFlag(FLAGS_metrics_listen);
  options.health_listen = absl::GetFlag(FLAGS_health_listen);
  options.drain_timeout = absl::GetFlag(FLAGS_drain_timeout);
  ISOTHERM_RETURN_IF_ERROR(rpc::ReadServerFlags(options));
  return options;
}

absl::Status Run() {
  ISOTHERM_ASSIGN_OR_RETURN(EngineOptions options, OptionsFromFlags());
  ISOTHERM_ASSIGN_OR_RETURN(const rpc::ServerOptions server_options, ServerOptionsFromFlags());
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<int> device_numbers, DeviceNumbersFromFlag());
  const int threads = absl::GetFlag(FLAGS_threads) > 0 ? absl::GetFlag(FLAGS_threads) : base::PhysicalCores();
  if (absl::GetFlag(FLAGS_plan_only)) {
    ISOTHERM_ASSIGN_OR_RETURN(EngineDevices devices, MakeDevices(device_numbers, threads));
    ISOTHERM_ASSIGN_OR_RETURN(const std::string plan, Engine::DescribePlan(options, std::move(devices)));
    std::cout << plan << std::endl;
    return absl::OkStatus();
  }

  // The server is made before the model is loaded, so that health and metrics answer meanwhile; the service
  // needs the server to report health to and the server needs the service to serve, hence the indirection.
  std::unique_ptr<rpc::Server> server;
  absl::Status failure;
  std::latch listening(1);
  RunnerService service(
      [&](const std::function<bool()>& cancelled) -> absl::StatusOr<std::unique_ptr<Engine>> {
        listening.wait();
        if (server == nullptr) return absl::CancelledError("the server did not start");
        options.cancelled = cancelled;
        ISOTHERM_ASSIGN_OR_RETURN(EngineDevices devices, MakeDevices(device_numbers, threads));
        return Engine::Load(options, std::move(devices));
      },
      [&](bool serving, const std::string& cause) {
        listening.wait();
        if (server != nullptr) server->SetServing(kService, serving, cause);
      },
      [&](const absl::Status& status) {
        failure = status;
        if (server != nullptr) server->Shutdown();
      },
      absl::GetFlag(FLAGS_shm_directory));
  ModelFileService model_files(options.model_path);
  {
    // The service's thread waits for it, also where starting throws.
    const absl::Cleanup tell = [&listening] { listening.count_down(); };
    ISOTHERM_ASSIGN_OR_RETURN(server, rpc::Server::Start(server_options, {&service, &model_files}));
  }
  server->SetServing(ModelFileService::kName, true, "");
  spdlog::info("gpu_worker listens on {}, device {} with {} threads", absl::GetFlag(FLAGS_listen),
               absl::GetFlag(FLAGS_device), threads);
  ISOTHERM_RETURN_IF_ERROR(server->ServeUntilSignal([&] { service.Drain(); }));
  service.SaveProfile();
  return failure;
}

}  // namespace
}  // namespace isotherm::gpu_worker

int main(int argc, char** argv) {
  const isotherm::base::Program program = {
      .name = "gpu_worker",
      .summary =
          "Runs the layers of a model: attention, KV cache, the predictor and the hot neurons, on a GPU, or "
          "on device host (CPU) for machines without one. Neurons that do not fit --vram-budget are cold: "
          "the CPU worker computes them.",
      .examples =
          "gpu_worker --model=models/tales/tales-q8_0.gguf\n"
          "    # everything hot; no CPU worker is needed\n"
          "gpu_worker --model=m.gguf --vram-budget=4 --plan-only\n"
          "    # what 4 GiB would hold\n"
          "gpu_worker --model=m.gguf --vram-budget=4 --cpu-worker=127.0.0.1:7072\n"
          "    # hot neurons in 4 GiB, the rest on the CPU worker\n"
          "gpu_worker --model=m.gguf --vram-budget=4 --cpu-worker=127.0.0.1:7072,10.0.0.2:7072\n"
          "    # two CPU workers, one of them on another machine",
      .groups = {
          {"Model", {"model", "ctx", "kv_tokens", "kv_type", "predictor", "predictor_threshold_shift"}},
          {"Placement", {"profile", "profile_dir", "save_profile", "placement", "adapt", "adapt_interval"}},
          {"Device",
           {"device", "devices", "vram_budget", "plan_only", "attention_offload", "threads",
            "max_prefill_rows", "max_decode_rows", "micro_batches", "stream_rows", "bus_share", "look_ahead",
            "step_ahead", "spin_us", "time_operators", "inject_device_fault"}},
          {"CPU workers",
           {"cpu_worker", "cpu_worker_shares", "exchange_transport", "exchange_activations",
            "exchange_timeout", "shm_directory"}},
          isotherm::rpc::ConnectionFlags(),
          {"Serving", {"listen", "metrics_listen", "health_listen", "drain_timeout"}},
          isotherm::rpc::AccessFlags(),
          isotherm::rpc::LimitFlags()}};
  return isotherm::rpc::RunMain(program, argc, argv, isotherm::gpu_worker::Run);
}
