#ifndef ISOTHERM_GATEWAY_ENGINE_GENERATE_SEQUENCE_H_
#define ISOTHERM_GATEWAY_ENGINE_GENERATE_SEQUENCE_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gateway/engine/outbox.h"
#include "gateway/engine/sequence.h"
#include "gateway/sampling/sampler.h"
#include "gateway/text/detokenizer.h"
#include "gateway/text/stop.h"
#include "gateway/text/tokenizer.h"
#include "isotherm/v1/inference.pb.h"

namespace isotherm::gateway {

// What Generate asks for, validated.
struct GenerateTask {
  std::vector<uint32_t> prompt;  // not empty, ids below the vocabulary's size
  SamplingOptions sampling;
  uint64_t seed = 0;
  int64_t max_tokens = std::numeric_limits<int64_t>::max();  // at least 1
  std::vector<std::string> stop;                             // none empty
  bool ignore_eos = false;
};

// Prefills a prompt, then draws token after token and sends the text to an outbox.
class GenerateSequence final : public Sequence {
 public:
  // `tokenizer` and `metrics` outlive the sequence.
  GenerateSequence(GenerateTask task, const text::Tokenizer* tokenizer, const GatewayMetrics* metrics,
                   std::shared_ptr<Caller> caller, std::shared_ptr<Outbox> outbox);

  // Whoever drops a sequence that has no answer yet leaves nobody waiting.
  ~GenerateSequence() override {
    outbox_->Fail(absl::InternalError("the request was lost inside the gateway"));
  }

  absl::Status FitInto(int64_t context) override;
  void WaitForWorker() override { Report(v1::GENERATE_PHASE_WAITING_FOR_WORKER); }

 private:
  int64_t rows_wanted() const override { return static_cast<int64_t>(tokens_.size()); }
  int64_t prompt_tokens() const override { return prompt_size_; }
  void FillTokens(int64_t position, int64_t rows, worker::v1::SequenceSlice* slice) const override;
  uint32_t GreedyChoices(const worker::v1::SequenceSlice& slice) const override;
  absl::StatusOr<bool> OnOutput(const worker::v1::SequenceSlice& slice, const worker::v1::SliceOutput& output,
                                absl::Time now) override;
  void OnFailure(const absl::Status& status) override { outbox_->Fail(status); }

  int64_t generated() const { return static_cast<int64_t>(tokens_.size()) - prompt_size_; }
  void Report(v1::GeneratePhase phase);
  // Takes one drawn token into the history and the text. Unspecified: the sequence goes on.
  v1::FinishReason Append(uint32_t token, absl::Time now);
  // The text held back for a character or stop string that did not come.
  void SendRest(v1::FinishReason reason);
  void Complete(v1::FinishReason reason, absl::Time now);
  void ObserveToken(absl::Time now);

  const GenerateTask task_;
  const int64_t prompt_size_;
  const text::Tokenizer* const tokenizer_;
  const std::shared_ptr<Outbox> outbox_;

  std::vector<uint32_t> tokens_;  // prompt and completion; the last one has no row in the KV cache yet
  int64_t context_ = 0;
  Sampler sampler_;
  text::Detokenizer detokenizer_;
  text::StopMatcher stop_;
  v1::GeneratePhase phase_ = v1::GENERATE_PHASE_UNSPECIFIED;
  std::optional<absl::Time> first_token_, last_token_;
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_ENGINE_GENERATE_SEQUENCE_H_
