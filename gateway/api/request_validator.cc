#include "gateway/api/request_validator.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/rpc/server.h"

namespace isotherm::gateway {
namespace {

// More than any client needs, and little enough to keep the matcher's automaton small.
constexpr int kMaxStopStrings = 64;
constexpr size_t kMaxStopBytes = 1024;

std::optional<bool> AddBos(bool present, bool value) {
  return present ? std::optional<bool>(value) : std::nullopt;
}

uint64_t RandomSeed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

absl::Status CheckId(const char* field, int64_t index, uint32_t id, int64_t vocabulary_size) {
  if (id < vocabulary_size) return absl::OkStatus();
  return rpc::InvalidField(absl::StrCat(field, "[", index, "]"),
                           absl::StrCat("is ", id, ", but the vocabulary has ", vocabulary_size, " tokens"));
}

absl::Status ReadStopping(const v1::StoppingParameters& stopping, GenerateTask* task) {
  if (stopping.has_max_tokens()) {
    if (stopping.max_tokens() == 0) return rpc::InvalidField("stopping.max_tokens", "must be at least 1");
    task->max_tokens = stopping.max_tokens();
  }
  if (stopping.stop_size() > kMaxStopStrings) {
    return rpc::InvalidField("stopping.stop", absl::StrCat("has ", stopping.stop_size(), " strings; at most ",
                                                           kMaxStopStrings, " are allowed"));
  }
  for (int i = 0; i < stopping.stop_size(); ++i) {
    const size_t bytes = stopping.stop(i).size();
    if (bytes == 0 || bytes > kMaxStopBytes) {
      return rpc::InvalidField(absl::StrCat("stopping.stop[", i, "]"),
                               absl::StrCat("has ", bytes, " bytes; 1 to ", kMaxStopBytes, " are allowed"));
    }
    task->stop.push_back(stopping.stop(i));
  }
  task->ignore_eos = stopping.ignore_eos();
  return absl::OkStatus();
}

}  // namespace

RequestValidator::RequestValidator(std::string model_name, const text::Tokenizer* tokenizer)
    : model_name_(std::move(model_name)), tokenizer_(tokenizer) {
  for (const text::Token& token : tokenizer->vocabulary().tokens) {
    longest_token_ = std::max<int64_t>(longest_token_, token.text.size());
  }
}

absl::Status RequestValidator::CheckModel(const std::string& name) const {
  if (name.empty() || name == model_name_) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("model: there is no \"", name, "\" here, only \"", model_name_, "\""));
}

absl::StatusOr<std::vector<uint32_t>> RequestValidator::Encode(const std::string& text,
                                                               const text::EncodeOptions& options,
                                                               int64_t context) const {
  const int64_t least_tokens = static_cast<int64_t>(text.size()) / longest_token_;
  if (context > 0 && least_tokens > context) {
    return rpc::InvalidField("text", absl::StrCat("of ", text.size(), " bytes is at least ", least_tokens,
                                                  " tokens long, but the context holds ", context));
  }
  absl::StatusOr<std::vector<uint32_t>> ids = tokenizer_->Encode(text, options);
  if (absl::IsInvalidArgument(ids.status())) {
    return rpc::InvalidField("text", std::string(ids.status().message()));
  }
  return ids;
}

absl::StatusOr<std::vector<uint32_t>> RequestValidator::CheckIds(const v1::TokenIds& tokens) const {
  for (int i = 0; i < tokens.ids_size(); ++i) {
    ISOTHERM_RETURN_IF_ERROR(CheckId("tokens.ids", i, tokens.ids(i), tokenizer_->vocabulary_size()));
  }
  return std::vector<uint32_t>(tokens.ids().begin(), tokens.ids().end());
}

absl::StatusOr<GenerateTask> RequestValidator::Generate(const v1::GenerateRequest& request,
                                                        int64_t context) const {
  ISOTHERM_RETURN_IF_ERROR(CheckModel(request.model()));
  GenerateTask task;
  ISOTHERM_ASSIGN_OR_RETURN(task.sampling,
                            ParseSamplingOptions(request.sampling(), tokenizer_->vocabulary_size()));
  ISOTHERM_RETURN_IF_ERROR(ReadStopping(request.stopping(), &task));
  task.seed = request.sampling().has_seed() ? request.sampling().seed() : RandomSeed();
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText: {
      text::EncodeOptions options;
      options.add_bos = AddBos(request.has_add_bos(), request.add_bos());
      options.add_eos = false;  // the text goes on
      ISOTHERM_ASSIGN_OR_RETURN(task.prompt, Encode(request.text(), options, context));
      break;
    }
    case v1::GenerateRequest::kTokens: {
      ISOTHERM_ASSIGN_OR_RETURN(task.prompt, CheckIds(request.tokens()));
      break;
    }
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return rpc::InvalidField("prompt", "is missing: set text or tokens");
  }
  if (task.prompt.empty()) return rpc::InvalidField("prompt", "has no tokens");
  return task;
}

absl::StatusOr<std::vector<uint32_t>> RequestValidator::Score(const v1::ScoreRequest& request,
                                                              int64_t context) const {
  ISOTHERM_RETURN_IF_ERROR(CheckModel(request.model()));
  std::vector<uint32_t> tokens;
  switch (request.input_case()) {
    case v1::ScoreRequest::kText: {
      text::EncodeOptions options;
      options.add_bos = AddBos(request.has_add_bos(), request.add_bos());
      ISOTHERM_ASSIGN_OR_RETURN(tokens, Encode(request.text(), options, context));
      break;
    }
    case v1::ScoreRequest::kTokens: {
      ISOTHERM_ASSIGN_OR_RETURN(tokens, CheckIds(request.tokens()));
      break;
    }
    case v1::ScoreRequest::INPUT_NOT_SET:
      return rpc::InvalidField("input", "is missing: set text or tokens");
  }
  if (tokens.empty()) return rpc::InvalidField("input", "has no tokens");
  return tokens;
}

absl::StatusOr<std::vector<uint32_t>> RequestValidator::Tokenize(const v1::TokenizeRequest& request) const {
  ISOTHERM_RETURN_IF_ERROR(CheckModel(request.model()));
  text::EncodeOptions options;
  options.add_bos = AddBos(request.has_add_bos(), request.add_bos());
  options.parse_special = request.parse_special();
  return Encode(request.text(), options, 0);
}

absl::StatusOr<std::string> RequestValidator::Detokenize(const v1::DetokenizeRequest& request) const {
  ISOTHERM_RETURN_IF_ERROR(CheckModel(request.model()));
  const std::vector<uint32_t> ids(request.tokens().begin(), request.tokens().end());
  for (size_t i = 0; i < ids.size(); ++i) {
    ISOTHERM_RETURN_IF_ERROR(CheckId("tokens", i, ids[i], tokenizer_->vocabulary_size()));
  }
  text::DecodeOptions options;
  options.render_special = request.render_special();
  return tokenizer_->Decode(ids, options);
}

}  // namespace isotherm::gateway
