#ifndef ISOTHERM_GATEWAY_ENGINE_SCORE_SEQUENCE_H_
#define ISOTHERM_GATEWAY_ENGINE_SCORE_SEQUENCE_H_

#include <cstdint>
#include <future>
#include <memory>
#include <vector>

#include "gateway/engine/sequence.h"
#include "isotherm/v1/inference.pb.h"

namespace isotherm::gateway {

// Prefills tokens and collects the log-probability of each under those before it. Nothing is generated.
class ScoreSequence final : public Sequence {
 public:
  // At least two tokens, ids below the vocabulary's size. `metrics` outlives the sequence.
  ScoreSequence(std::vector<uint32_t> tokens, const GatewayMetrics* metrics, std::shared_ptr<Caller> caller);

  // Gets the answer or an error; call once.
  std::future<absl::StatusOr<v1::ScoreResponse>> Result() { return result_.get_future(); }

  absl::Status FitInto(int64_t context) override;

 private:
  // The last token is only a target.
  int64_t rows_wanted() const override { return prompt_tokens() - 1; }
  int64_t prompt_tokens() const override { return static_cast<int64_t>(tokens_.size()); }
  void FillTokens(int64_t position, int64_t rows, worker::v1::SequenceSlice* slice) const override;
  absl::StatusOr<bool> OnOutput(const worker::v1::SequenceSlice& slice, const worker::v1::SliceOutput& output,
                                absl::Time now) override;
  void OnFailure(const absl::Status& status) override { result_.set_value(status); }

  const std::vector<uint32_t> tokens_;
  std::vector<float> log_probabilities_;
  std::promise<absl::StatusOr<v1::ScoreResponse>> result_;
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_ENGINE_SCORE_SEQUENCE_H_
