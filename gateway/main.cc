#include "common/rpc/main.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/model/model.h"
#include "common/observe/log.h"
#include "common/rpc/client_flags.h"
#include "common/rpc/server.h"
#include "common/rpc/server_flags.h"
#include "gateway/api/inference_service.h"
#include "gateway/api/model_service.h"
#include "gateway/api/request_validator.h"
#include "gateway/engine/engine.h"
#include "gateway/text/tokenizer.h"
#include "gateway/text/vocabulary.h"
#include "gateway/workers/grpc_worker_client.h"

ABSL_FLAG(std::string, model, "",
          "GGUF file of the model, the same that the GPU worker serves. Only its metadata and vocabulary are "
          "read.");
ABSL_FLAG(std::string, worker, "127.0.0.1:7071", "Address of the GPU worker: host:port or unix:/path.");
ABSL_FLAG(absl::Duration, worker_grace, absl::Seconds(60),
          "How long streams wait for a lost worker before they end with UNAVAILABLE; 0s: not at all.");
ABSL_FLAG(absl::Duration, step_timeout, absl::Seconds(120),
          "A worker that takes longer than this over one step counts as lost. A step is one token of every "
          "stream, or a chunk of a prompt.");
ABSL_FLAG(std::string, shm_directory, "/dev/shm",
          "Where the GPU worker puts logits if it runs on this host; the same folder as its own. Empty: they "
          "come inside messages.");
ABSL_FLAG(std::string, listen, "127.0.0.1:7070",
          "Where clients connect: host:port or unix:/path, several separated by commas.");
ABSL_FLAG(std::string, api_keys, "",
          "File of API keys, made by 'isotherm key create'; every call then needs one. Read again when it "
          "changes.");
ABSL_FLAG(std::string, metrics_listen, "127.0.0.1:9401",
          "Where Prometheus scrapes /metrics; empty for nowhere.");
ABSL_FLAG(std::string, health_listen, "",
          "Where grpc.health.v1 alone is answered, always in plain text (host:port), for probes that cannot "
          "speak TLS; empty for only where --listen says.");
ABSL_FLAG(int64_t, max_queue, 256,
          "Requests that may wait for their turn; one more gets RESOURCE_EXHAUSTED.");
ABSL_FLAG(absl::Duration, drain_timeout, absl::Seconds(30),
          "After SIGTERM, how long running streams may go on before they are cancelled.");

namespace isotherm::gateway {
namespace {

constexpr char kInferenceService[] = "isotherm.v1.InferenceService";
// Prompts are short; what a worker sends to a worker is not.
constexpr int kMaxRequestBytes = 4 << 20;
constexpr char kModelService[] = "isotherm.v1.ModelService";

base::FlagGroup AccessFlags() {
  base::FlagGroup group = rpc::AccessFlags();
  group.flags.insert(group.flags.begin(), "api_keys");
  return group;
}

base::Program Description() {
  return {
      .name = "gateway",
      .summary =
          "The public face of Isotherm: takes prompts over gRPC (isotherm.v1), batches them continuously on "
          "one GPU worker, and streams the text back. It survives its workers: streams pause while one is "
          "lost and go on, with nothing missing or said twice, when it is back.",
      .arguments = "",
      .examples =
          "# Serve the model that the GPU worker at its default address serves\n"
          "gateway --model models/tales/tales-q8_0.gguf\n"
          "# Local clients over a socket, others over the network, and a longer queue\n"
          "gateway --model tales.gguf --worker unix:/run/isotherm/gpu.sock \\\n"
          "        --listen unix:/run/isotherm/gateway.sock,0.0.0.0:7070 \\\n"
          "        --tls-cert server.pem --tls-key server.key --api-keys keys --max-queue 1000",
      .groups = {{"Model", {"model"}},
                 {"Worker", {"worker", "worker_grace", "step_timeout", "shm_directory"}},
                 rpc::ConnectionFlags(),
                 {"Serving", {"listen", "metrics_listen", "health_listen", "max_queue", "drain_timeout"}},
                 AccessFlags(),
                 rpc::LimitFlags()}};
}

absl::Status CheckFlags() {
  if (absl::GetFlag(FLAGS_model).empty())
    return base::UsageError("--model is missing: the GGUF file to serve");
  if (absl::GetFlag(FLAGS_worker).empty()) return base::UsageError("--worker is empty");
  if (absl::GetFlag(FLAGS_listen).empty()) return base::UsageError("--listen is empty");
  if (absl::GetFlag(FLAGS_max_queue) < 1) return base::UsageError("--max-queue must be at least 1");
  if (absl::GetFlag(FLAGS_worker_grace) < absl::ZeroDuration()) {
    return base::UsageError("--worker-grace must not be negative");
  }
  if (absl::GetFlag(FLAGS_step_timeout) <= absl::ZeroDuration()) {
    return base::UsageError("--step-timeout must be positive");
  }
  return rpc::CheckReachedSafely("worker", absl::GetFlag(FLAGS_worker));
}

absl::StatusOr<rpc::ServerOptions> ServerOptionsFromFlags() {
  rpc::ServerOptions options;
  options.max_message_bytes = kMaxRequestBytes;
  options.max_upload_bytes = 32 * int64_t{kMaxRequestBytes};
  options.listen = absl::StrSplit(absl::GetFlag(FLAGS_listen), ',', absl::SkipEmpty());
  options.metrics_listen = absl::GetFlag(FLAGS_metrics_listen);
  options.health_listen = absl::GetFlag(FLAGS_health_listen);
  options.drain_timeout = absl::GetFlag(FLAGS_drain_timeout);
  options.api_keys = absl::GetFlag(FLAGS_api_keys);
  ISOTHERM_RETURN_IF_ERROR(rpc::ReadServerFlags(options));
  return options;
}

EngineOptions EngineOptionsFromFlags(const model::Model& model) {
  EngineOptions options;
  options.worker.model_digest = model.digest();
  options.worker.vocabulary_size = model.hyperparameters().vocabulary;
  options.worker.grace = absl::GetFlag(FLAGS_worker_grace);
  options.worker.step_timeout = absl::GetFlag(FLAGS_step_timeout);
  options.max_queue = absl::GetFlag(FLAGS_max_queue);
  return options;
}

v1::Model DescribeFile(const model::Model& model) {
  const model::Hyperparameters& h = model.hyperparameters();
  v1::Model description;
  description.set_name(model.DisplayName());
  description.set_architecture(h.architecture);
  description.set_vocabulary_size(static_cast<uint32_t>(h.vocabulary));
  description.set_layers(static_cast<uint32_t>(h.layers));
  description.set_hidden_size(static_cast<uint32_t>(h.hidden));
  description.set_ffn_size(static_cast<uint32_t>(h.ffn));
  description.set_activation(model::ActivationName(h.activation));
  description.set_digest(model.digest());
  return description;
}

absl::Status Serve() {
  ISOTHERM_RETURN_IF_ERROR(CheckFlags());
  ISOTHERM_ASSIGN_OR_RETURN(const rpc::ServerOptions server_options, ServerOptionsFromFlags());
  ISOTHERM_ASSIGN_OR_RETURN(const rpc::ClientCredentials credentials, rpc::CredentialsFromFlags());
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<model::Model> model,
                            model::Model::Open(absl::GetFlag(FLAGS_model)));
  ISOTHERM_ASSIGN_OR_RETURN(text::Vocabulary vocabulary, text::Vocabulary::FromFile(model->file()));
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<text::Tokenizer> tokenizer,
                            text::Tokenizer::Create(std::move(vocabulary)));
  const RequestValidator validator(model->DisplayName(), tokenizer.get());
  const GatewayMetrics metrics;
  Engine engine(
      EngineOptionsFromFlags(*model),
      NewGrpcWorkerClient(absl::GetFlag(FLAGS_worker), credentials, absl::GetFlag(FLAGS_shm_directory)),
      &metrics);
  InferenceService inference(&validator, tokenizer.get(), &metrics, &engine);
  ModelService models(DescribeFile(*model), &validator, &engine, [&credentials] {
    // The worker answers between two steps.
    return FetchFiringCounts(absl::GetFlag(FLAGS_worker), credentials, absl::GetFlag(FLAGS_step_timeout));
  });

  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Server> server,
                            rpc::Server::Start(server_options, {&inference, &models}));
  // Before the server ends: its last handlers wait for the engine, and the engine reports to it.
  const absl::Cleanup stop = [&engine] { engine.Stop(); };
  server->SetServing(kModelService, true, "");
  engine.Start([&server](bool serving, const std::string& cause) {
    server->SetServing(kInferenceService, serving, cause);
  });
  spdlog::info("serving {} on {}", model->DisplayName(), absl::GetFlag(FLAGS_listen));
  return server->ServeUntilSignal([&engine] { engine.Drain(); });
}

}  // namespace
}  // namespace isotherm::gateway

int main(int argc, char** argv) {
  return isotherm::rpc::RunMain(isotherm::gateway::Description(), argc, argv, isotherm::gateway::Serve);
}
