#include <algorithm>
#include <cmath>
#include <iostream>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/observe/log.h"
#include "common/rpc/server.h"
#include "isotherm/v1/inference.grpc.pb.h"
#include "isotherm/v1/model.grpc.pb.h"
#include "tools/cli/commands.h"

ABSL_FLAG(bool, each, false, "Print the log-probability of every token.");
ABSL_FLAG(uint32_t, window, 0,
          "Score a long text in windows of this many tokens, each beginning with the beginning-of-sequence "
          "token; 0: the "
          "model's context length.");
ABSL_FLAG(uint32_t, max_windows, 0, "Stop after this many windows; 0 for all.");

namespace isotherm::cli {
namespace {

struct Total {
  double log_probability = 0;  // natural log
  int64_t tokens = 0;
};

absl::StatusOr<uint32_t> WindowLength(const std::shared_ptr<grpc::Channel>& channel) {
  if (uint32_t window = absl::GetFlag(FLAGS_window); window > 0) return window;
  v1::GetModelResponse response;
  grpc::ClientContext context;
  auto models = v1::ModelService::NewStub(channel);
  ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(models->GetModel(&context, {}, &response)));
  return response.model().context_length();
}

absl::StatusOr<std::vector<uint32_t>> Tokenize(v1::InferenceService::Stub& stub, const std::string& text,
                                               bool add_bos) {
  v1::TokenizeRequest request;
  request.set_text(text);
  request.set_add_bos(add_bos);
  v1::TokenizeResponse response;
  grpc::ClientContext context;
  ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(stub.Tokenize(&context, request, &response)));
  return std::vector<uint32_t>(response.tokens().begin(), response.tokens().end());
}

absl::Status ScoreWindow(v1::InferenceService::Stub& stub, const std::vector<uint32_t>& window,
                         Total& total) {
  v1::ScoreRequest request;
  request.mutable_tokens()->mutable_ids()->Add(window.begin(), window.end());
  v1::ScoreResponse response;
  grpc::ClientContext context;
  ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(stub.Score(&context, request, &response)));
  for (int i = 0; i < response.log_probabilities_size(); ++i) {
    total.log_probability += response.log_probabilities(i);
    ++total.tokens;
    if (absl::GetFlag(FLAGS_each)) {
      std::cout << absl::StrFormat("%d\t%.6f\n", response.tokens(i + 1), response.log_probabilities(i));
    }
  }
  return absl::OkStatus();
}

absl::Status Run(const std::vector<std::string>& arguments) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string text, ReadText(arguments));
  ISOTHERM_ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel, ConnectToServer());
  auto stub = v1::InferenceService::NewStub(channel);
  ISOTHERM_ASSIGN_OR_RETURN(const uint32_t window, WindowLength(channel));
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<uint32_t> tokens, Tokenize(*stub, text, /*add_bos=*/false));
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<uint32_t> bos, Tokenize(*stub, "", /*add_bos=*/true));
  if (window <= bos.size() + 1) {
    return base::UsageError(absl::StrCat("--window=", window, " leaves nothing to score"));
  }
  const size_t stride = window - bos.size();
  const uint32_t limit = absl::GetFlag(FLAGS_max_windows);
  observe::Progress progress("scoring", static_cast<int64_t>(tokens.size()), "tokens");
  Total total;
  uint32_t windows = 0;
  for (size_t begin = 0; begin < tokens.size() && (limit == 0 || windows < limit);
       begin += stride, ++windows) {
    const size_t end = std::min(tokens.size(), begin + stride);
    std::vector<uint32_t> ids = bos;
    ids.insert(ids.end(), tokens.begin() + begin, tokens.begin() + end);
    if (ids.size() < 2) break;
    ISOTHERM_RETURN_IF_ERROR(ScoreWindow(*stub, ids, total));
    progress.Advance(static_cast<int64_t>(end - begin));
  }
  progress.Finish();
  if (total.tokens == 0) return base::UsageError("the text has no token to score");
  const double nats = -total.log_probability / static_cast<double>(total.tokens);
  std::cout << absl::StrFormat(
      "tokens %d, windows %d of %d, log-probability %.4f, nats/token %.5f, perplexity %.4f\n", total.tokens,
      windows, window, total.log_probability, nats, std::exp(nats));
  return absl::OkStatus();
}

}  // namespace

Command ScoreCommand() {
  base::Program program;
  program.name = "isotherm score";
  program.summary =
      "Log-probabilities of a text under the served model, and its perplexity. The text is the argument, or "
      "standard\n"
      "input; long texts are cut into windows that are scored one by one.";
  program.arguments = "[TEXT]";
  program.examples =
      "isotherm score \"Once upon a time there was a king.\" --each\n"
      "isotherm score --window=512 < valid.txt";
  program.groups = {ServerFlags(), {"Scoring", {"window", "max_windows", "each"}}};
  return {program, Run};
}

}  // namespace isotherm::cli
