#include "tools/cli/text_scorer.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/rpc/server.h"

namespace isotherm::cli {

TextScorer::TextScorer(const std::shared_ptr<grpc::Channel>& channel)
    : inference_(v1::InferenceService::NewStub(channel)), models_(v1::ModelService::NewStub(channel)) {}

absl::StatusOr<v1::Model> TextScorer::Model() {
  grpc::ClientContext context;
  v1::GetModelResponse response;
  ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(models_->GetModel(&context, {}, &response)));
  return response.model();
}

absl::StatusOr<std::vector<uint32_t>> TextScorer::Tokenize(const std::string& text,
                                                           std::optional<bool> add_bos) {
  v1::TokenizeRequest request;
  request.set_text(text);
  if (add_bos.has_value()) request.set_add_bos(*add_bos);
  v1::TokenizeResponse response;
  grpc::ClientContext context;
  absl::Status status = rpc::FromGrpc(inference_->Tokenize(&context, request, &response));
  if (absl::StrContains(status.message(), "larger than max")) {  // gRPC's words
    return absl::ResourceExhaustedError(
        absl::StrCat("the gateway refuses ", text.size(), " bytes of text: ", std::string(status.message()),
                     ". Give a shorter text, or start it with a larger --max-message-mib"));
  }
  ISOTHERM_RETURN_IF_ERROR(status);
  return std::vector<uint32_t>(response.tokens().begin(), response.tokens().end());
}

absl::StatusOr<v1::ScoreResponse> TextScorer::Score(absl::Span<const uint32_t> tokens) {
  v1::ScoreRequest request;
  request.mutable_tokens()->mutable_ids()->Add(tokens.begin(), tokens.end());
  v1::ScoreResponse response;
  grpc::ClientContext context;
  ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(inference_->Score(&context, request, &response)));
  if (response.log_probabilities_size() + 1 != static_cast<int>(tokens.size())) {
    return absl::InternalError("the server answered with another number of log-probabilities than asked for");
  }
  return response;
}

absl::StatusOr<v1::GetFiringCountsResponse> TextScorer::FiringCounts() {
  v1::GetFiringCountsResponse response;
  grpc::ClientContext context;
  ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(models_->GetFiringCounts(&context, {}, &response)));
  return response;
}

std::vector<std::vector<uint32_t>> CutIntoWindows(absl::Span<const uint32_t> tokens,
                                                  absl::Span<const uint32_t> bos, size_t window) {
  std::vector<std::vector<uint32_t>> windows;
  const size_t stride = window - bos.size();
  for (size_t begin = 0; begin < tokens.size(); begin += stride) {
    const absl::Span<const uint32_t> piece = tokens.subspan(begin, stride);
    std::vector<uint32_t> ids(bos.begin(), bos.end());
    ids.insert(ids.end(), piece.begin(), piece.end());
    if (ids.size() >= 2) windows.push_back(std::move(ids));
  }
  return windows;
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path) {
  ISOTHERM_ASSIGN_OR_RETURN(std::string text, base::ReadSmallFile(path));
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

const char* ModeName(v1::ExecutionMode mode) {
  return mode == v1::EXECUTION_MODE_EXACT ? "exact" : "predicted";
}

}  // namespace isotherm::cli
