#include "gateway/engine/score_sequence.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"

namespace isotherm::gateway {

ScoreSequence::ScoreSequence(std::vector<uint32_t> tokens, const GatewayMetrics* metrics,
                             std::shared_ptr<Caller> caller)
    : Sequence(std::move(caller), metrics), tokens_(std::move(tokens)) {}

absl::Status ScoreSequence::FitInto(int64_t context) {
  if (prompt_tokens() <= context) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("input: has ", prompt_tokens(), " tokens, but the context holds ", context));
}

void ScoreSequence::FillTokens(int64_t position, int64_t rows, worker::v1::SequenceSlice* slice) const {
  const auto first = tokens_.begin() + position;
  slice->mutable_tokens()->Add(first, first + rows);
  slice->mutable_targets()->Add(first + 1, first + rows + 1);
  slice->set_output(worker::v1::STEP_OUTPUT_LOG_PROBABILITIES);
}

absl::StatusOr<bool> ScoreSequence::OnOutput(const worker::v1::SequenceSlice& slice,
                                             const worker::v1::SliceOutput& output, absl::Time now) {
  if (output.log_probabilities_size() != slice.tokens_size()) {
    return absl::InternalError(absl::StrCat("the GPU worker sent ", output.log_probabilities_size(),
                                            " log-probabilities for ", slice.tokens_size(), " tokens"));
  }
  // After a rebuild rows come a second time.
  log_probabilities_.resize(slice.position());
  for (const float value : output.log_probabilities()) {
    if (std::isnan(value)) return absl::InternalError("the GPU worker sent a log-probability that is NaN");
    log_probabilities_.push_back(value);
  }
  if (rows_computed() < rows_wanted()) return false;

  metrics().e2e_latency.Observe(absl::ToDoubleSeconds(now - arrival()));
  metrics().CountSuccess("score");
  v1::ScoreResponse response;
  response.mutable_tokens()->Add(tokens_.begin(), tokens_.end());
  response.mutable_log_probabilities()->Add(log_probabilities_.begin(), log_probabilities_.end());
  *response.mutable_execution() = execution().Summary();
  result_.set_value(std::move(response));
  return true;
}

}  // namespace isotherm::gateway
