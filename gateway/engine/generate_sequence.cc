#include "gateway/engine/generate_sequence.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "gateway/engine/durations.h"

namespace isotherm::gateway {
namespace {

// Prometheus label values, as vLLM names what it shares with us.
const char* ReasonLabel(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_END_OF_SEQUENCE:
      return "stop";
    case v1::FINISH_REASON_STOP_STRING:
      return "stop_string";
    case v1::FINISH_REASON_MAX_TOKENS:
      return "length";
    case v1::FINISH_REASON_CONTEXT_FULL:
      return "context_full";
    default:
      return "unknown";
  }
}

// The text goes on after the prompt, so the first token keeps its leading space.
text::Detokenizer ContinuingDetokenizer(const text::Tokenizer& tokenizer) {
  text::DecodeOptions options;
  options.continuation = true;
  return text::Detokenizer(tokenizer, options);
}

}  // namespace

GenerateSequence::GenerateSequence(GenerateTask task, const text::Tokenizer* tokenizer,
                                   const GatewayMetrics* metrics, std::shared_ptr<Caller> caller,
                                   std::shared_ptr<Outbox> outbox)
    : Sequence(std::move(caller), metrics),
      task_(std::move(task)),
      prompt_size_(static_cast<int64_t>(task_.prompt.size())),
      tokenizer_(tokenizer),
      outbox_(std::move(outbox)),
      tokens_(task_.prompt),
      sampler_(task_.sampling, task_.seed),
      detokenizer_(ContinuingDetokenizer(*tokenizer)),
      stop_(task_.stop) {
  Report(v1::GENERATE_PHASE_QUEUED);
}

absl::Status GenerateSequence::FitInto(int64_t context) {
  context_ = context;
  if (rows_wanted() < context) return absl::OkStatus();
  if (generated() > 0) {
    return absl::UnavailableError(absl::StrCat("the GPU worker came back with a context of ", context,
                                               " tokens, too few for the ", rows_wanted(),
                                               " of this sequence"));
  }
  return absl::InvalidArgumentError(absl::StrCat("prompt: has ", prompt_size_,
                                                 " tokens, but the context holds ", context,
                                                 " and at least one is generated"));
}

void GenerateSequence::FillTokens(int64_t position, int64_t rows, worker::v1::SequenceSlice* slice) const {
  slice->mutable_tokens()->Add(tokens_.begin() + position, tokens_.begin() + position + rows);
  const bool complete = position + rows == rows_wanted();
  slice->set_output(complete ? worker::v1::STEP_OUTPUT_LAST_LOGITS : worker::v1::STEP_OUTPUT_NONE);
}

uint32_t GenerateSequence::GreedyChoices(const worker::v1::SequenceSlice& slice) const {
  const bool goes_on = slice.output() == worker::v1::STEP_OUTPUT_LAST_LOGITS &&
                       generated() + 1 < task_.max_tokens && rows_wanted() + 1 < context_;
  return goes_on && task_.sampling.takes_largest() ? static_cast<uint32_t>(tokenizer_->vocabulary_size()) : 0;
}

absl::StatusOr<bool> GenerateSequence::OnOutput(const worker::v1::SequenceSlice& slice,
                                                const worker::v1::SliceOutput& output, absl::Time now) {
  if (slice.output() == worker::v1::STEP_OUTPUT_NONE) {
    Report(v1::GENERATE_PHASE_PREFILL);
    return false;
  }
  const size_t vocabulary = tokenizer_->vocabulary_size();
  if (output.logits().size() < vocabulary * sizeof(float)) {
    return absl::InternalError(absl::StrCat("the GPU worker sent ", output.logits().size(),
                                            " bytes of logits for ", vocabulary, " tokens"));
  }
  // What comes after them is padding of the embedding, which no token stands for.
  std::vector<float> logits(vocabulary);
  std::memcpy(logits.data(), output.logits().data(), vocabulary * sizeof(float));
  ISOTHERM_ASSIGN_OR_RETURN(const uint32_t token, sampler_.Sample(logits, tokens_));

  ObserveToken(now);
  Report(v1::GENERATE_PHASE_DECODE);
  const v1::FinishReason reason = Append(token, now);
  if (reason == v1::FINISH_REASON_UNSPECIFIED) return false;
  SendRest(reason);
  Complete(reason, now);
  return true;
}

// PREFILL is reported after every chunk, the other phases when they begin.
void GenerateSequence::Report(v1::GeneratePhase phase) {
  if (phase == phase_ && phase != v1::GENERATE_PHASE_PREFILL) return;
  phase_ = phase;
  v1::GenerateProgress progress;
  progress.set_phase(phase);
  progress.set_prompt_tokens(static_cast<uint32_t>(prompt_size_));
  progress.set_prompt_tokens_done(static_cast<uint32_t>(std::min(rows_computed(), prompt_size_)));
  outbox_->Push(progress);
}

v1::FinishReason GenerateSequence::Append(uint32_t token, absl::Time now) {
  if (tokenizer_->IsEndOfSequence(token) && !task_.ignore_eos) return v1::FINISH_REASON_END_OF_SEQUENCE;
  tokens_.push_back(token);
  metrics().generation_tokens.Add();

  v1::GenerateChunk chunk;
  chunk.add_tokens(token);
  chunk.set_text(stop_.Push(detokenizer_.Push(token)));
  outbox_->Push(chunk);

  if (stop_.match()) return v1::FINISH_REASON_STOP_STRING;
  if (generated() >= task_.max_tokens) return v1::FINISH_REASON_MAX_TOKENS;
  if (rows_wanted() >= context_) return v1::FINISH_REASON_CONTEXT_FULL;
  return v1::FINISH_REASON_UNSPECIFIED;
}

void GenerateSequence::SendRest(v1::FinishReason reason) {
  if (reason == v1::FINISH_REASON_STOP_STRING) return;
  v1::GenerateChunk chunk;
  chunk.set_text(stop_.Push(detokenizer_.Flush()));
  chunk.mutable_text()->append(stop_.Flush());
  if (!chunk.text().empty()) outbox_->Push(chunk);
}

void GenerateSequence::ObserveToken(absl::Time now) {
  if (!first_token_) {
    first_token_ = now;
    metrics().time_to_first_token.Observe(absl::ToDoubleSeconds(now - arrival()));
    metrics().prefill_time.Observe(absl::ToDoubleSeconds(now - start_time()));
  } else {
    metrics().inter_token_latency.Observe(absl::ToDoubleSeconds(now - *last_token_));
  }
  last_token_ = now;
}

void GenerateSequence::Complete(v1::FinishReason reason, absl::Time now) {
  metrics().decode_time.Observe(absl::ToDoubleSeconds(now - *first_token_));
  metrics().e2e_latency.Observe(absl::ToDoubleSeconds(now - arrival()));
  metrics().CountSuccess(ReasonLabel(reason));

  v1::GenerateComplete complete;
  complete.set_finish_reason(reason);
  complete.mutable_usage()->set_prompt_tokens(static_cast<uint32_t>(prompt_size_));
  complete.mutable_usage()->set_completion_tokens(static_cast<uint32_t>(generated()));
  v1::Timings* timings = complete.mutable_timings();
  *timings->mutable_queue() = ToProto(queue_time());
  *timings->mutable_prefill() = ToProto(*first_token_ - start_time());
  *timings->mutable_decode() = ToProto(now - *first_token_);
  *timings->mutable_cpu_worker_wait() = ToProto(execution().cpu_worker_wait());
  *complete.mutable_execution() = execution().Summary();
  complete.set_seed(task_.seed);
  complete.set_rebuilds(rebuilds());
  outbox_->Complete(complete);
}

}  // namespace isotherm::gateway
