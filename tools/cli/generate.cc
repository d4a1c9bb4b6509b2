#include <cstdint>
#include <iostream>
#include <optional>

#include "absl/flags/flag.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/status_macros.h"
#include "common/rpc/server.h"
#include "isotherm/v1/inference.grpc.pb.h"
#include "tools/cli/commands.h"

ABSL_FLAG(uint32_t, max_tokens, 256, "Most tokens to generate; 0 for as many as the context holds.");
ABSL_FLAG(std::optional<float>, temperature, std::nullopt, "0 is greedy. Unset: the server's default.");
ABSL_FLAG(std::optional<uint32_t>, top_k, std::nullopt,
          "Keep the k most probable tokens; 0 keeps all. Unset: the server's default.");
ABSL_FLAG(std::optional<float>, top_p, std::nullopt, "Nucleus probability. Unset: the server's default.");
ABSL_FLAG(std::optional<float>, min_p, std::nullopt,
          "Drop tokens less probable than this share of the best. Unset: the server's default.");
ABSL_FLAG(std::optional<float>, repetition_penalty, std::nullopt,
          "Above 1 discourages repeated tokens. Unset: the server's default.");
ABSL_FLAG(std::optional<float>, frequency_penalty, std::nullopt,
          "Subtracted for each earlier occurrence. Unset: the server's default.");
ABSL_FLAG(std::optional<float>, presence_penalty, std::nullopt,
          "Subtracted once if a token occurred. Unset: the server's default.");
ABSL_FLAG(std::optional<uint64_t>, seed, std::nullopt,
          "Same seed, same text. Unset: random, and shown at the end.");
ABSL_FLAG(std::vector<std::string>, stop, {}, "Texts that end the generation, separated by commas.");
ABSL_FLAG(bool, ignore_eos, false, "Go on past the end of the sequence.");
ABSL_FLAG(std::optional<absl::Duration>, deadline, std::nullopt, "Give up after this long. Unset: never.");
ABSL_FLAG(bool, statistics, true, "Print what happened to standard error when the text is complete.");
ABSL_FLAG(bool, require_cold, false, "Fail if the CPU worker computed no neuron.");

namespace isotherm::cli {
namespace {

double Seconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + 1e-9 * duration.nanos();
}

v1::GenerateRequest MakeRequest(const std::string& prompt) {
  v1::GenerateRequest request;
  request.set_text(prompt);
  v1::SamplingParameters& sampling = *request.mutable_sampling();
  if (const auto v = absl::GetFlag(FLAGS_temperature)) sampling.set_temperature(*v);
  if (const auto v = absl::GetFlag(FLAGS_top_k)) sampling.set_top_k(*v);
  if (const auto v = absl::GetFlag(FLAGS_top_p)) sampling.set_top_p(*v);
  if (const auto v = absl::GetFlag(FLAGS_min_p)) sampling.set_min_p(*v);
  if (const auto v = absl::GetFlag(FLAGS_repetition_penalty)) sampling.set_repetition_penalty(*v);
  if (const auto v = absl::GetFlag(FLAGS_frequency_penalty)) sampling.set_frequency_penalty(*v);
  if (const auto v = absl::GetFlag(FLAGS_presence_penalty)) sampling.set_presence_penalty(*v);
  if (const auto v = absl::GetFlag(FLAGS_seed)) sampling.set_seed(*v);
  v1::StoppingParameters& stopping = *request.mutable_stopping();
  if (uint32_t v = absl::GetFlag(FLAGS_max_tokens); v > 0) stopping.set_max_tokens(v);
  for (const std::string& stop : absl::GetFlag(FLAGS_stop)) stopping.add_stop(stop);
  if (absl::GetFlag(FLAGS_ignore_eos)) stopping.set_ignore_eos(true);
  return request;
}

std::string Enumerator(const std::string& name, const std::string& prefix) {
  return absl::AsciiStrToLower(name.substr(prefix.size()));
}

void PrintStatistics(const v1::GenerateComplete& complete) {
  const v1::Timings& timings = complete.timings();
  const v1::ExecutionStatistics& execution = complete.execution();
  const double prefill = Seconds(timings.prefill());
  const double decode = Seconds(timings.decode());
  // The first token comes out of prefill.
  const uint32_t decoded =
      complete.usage().completion_tokens() - (complete.usage().completion_tokens() > 0 ? 1 : 0);
  std::cerr << absl::StrFormat("\nqueue     %.3f s\n", Seconds(timings.queue()))
            << absl::StrFormat("prefill   %d tokens in %.3f s, %.1f tokens/s\n",
                               complete.usage().prompt_tokens(), prefill,
                               prefill > 0 ? complete.usage().prompt_tokens() / prefill : 0.0)
            << absl::StrFormat("decode    %d tokens in %.3f s, %.1f tokens/s\n", decoded, decode,
                               decode > 0 ? decoded / decode : 0.0)
            << absl::StrFormat("neurons   %.1f %% computed, %.1f %% of those hot, %d cold\n",
                               100 * execution.computed_share(), 100 * execution.hot_share(),
                               execution.cold_neurons_computed())
            << absl::StrFormat("mode      %s, predictor %s\n",
                               Enumerator(v1::ExecutionMode_Name(execution.mode()), "EXECUTION_MODE_"),
                               execution.predictor())
            << absl::StrFormat("exchange  %d over %s, median %.0f us; %.3f s waiting for the CPU worker\n",
                               execution.exchanges(), execution.transport(),
                               1e6 * Seconds(execution.exchange_latency()),
                               Seconds(timings.cpu_worker_wait()))
            << absl::StrFormat("finish    %s, seed %d\n",
                               Enumerator(v1::FinishReason_Name(complete.finish_reason()), "FINISH_REASON_"),
                               complete.seed());
}

absl::Status Run(const std::vector<std::string>& arguments) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string prompt, ReadText(arguments));
  ISOTHERM_ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel, ConnectToServer());
  auto stub = v1::InferenceService::NewStub(channel);
  grpc::ClientContext context;
  if (const auto deadline = absl::GetFlag(FLAGS_deadline)) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + *deadline));
  }
  auto stream = stub->Generate(&context, MakeRequest(prompt));
  v1::GenerateResponse response;
  std::optional<v1::GenerateComplete> complete;
  while (stream->Read(&response)) {
    if (response.has_chunk()) std::cout << response.chunk().text() << std::flush;
    if (response.progress().phase() == v1::GENERATE_PHASE_WAITING_FOR_WORKER) {
      std::cerr << "\n[a worker is lost; the text goes on when it is back]\n";
    }
    if (response.has_complete()) complete = response.complete();
  }
  std::cout << std::endl;
  ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(stream->Finish()));
  if (!complete.has_value()) return absl::InternalError("the stream ended without a summary");
  if (absl::GetFlag(FLAGS_statistics)) PrintStatistics(*complete);
  if (absl::GetFlag(FLAGS_require_cold) && complete->execution().cold_neurons_computed() == 0) {
    return absl::FailedPreconditionError(
        "the CPU worker computed no neuron: every neuron is hot. Start gpu_worker with a smaller "
        "--vram-budget");
  }
  return absl::OkStatus();
}

}  // namespace

Command GenerateCommand() {
  base::Program program;
  program.name = "isotherm generate";
  program.summary =
      "Streams a continuation of a prompt to standard output, then says what happened on standard error. "
      "The prompt is the argument, or standard input.";
  program.arguments = "[PROMPT]";
  program.examples =
      "isotherm generate \"Once upon a time\"                      # sampled with the server's defaults\n"
      "isotherm generate --temperature=0 --max-tokens=64 < prompt.txt   # greedy, prompt from a file";
  program.groups = {ServerFlags(),
                    {"Sampling",
                     {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty",
                      "presence_penalty", "seed"}},
                    {"Stopping", {"max_tokens", "stop", "ignore_eos", "deadline"}},
                    {"Output", {"statistics", "require_cold"}}};
  return {program, Run};
}

}  // namespace isotherm::cli
