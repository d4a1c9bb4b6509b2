#include "gateway/engine/sequence.h"

#include "absl/strings/str_cat.h"

namespace isotherm::gateway {

SequenceSnapshot Sequence::Snapshot() const {
  return {id_, rows_wanted(), rows_computed_, static_cast<int64_t>(lease_.blocks().size())};
}

bool Sequence::ForgetRows() {
  lease_ = KvLease();
  const bool had_rows = rows_computed_ > 0;
  rows_computed_ = 0;
  if (had_rows) ++rebuilds_;
  return had_rows;
}

absl::Status Sequence::Fill(const PlannedSlice& planned, absl::Time now, int64_t connection,
                            worker::v1::SequenceSlice* slice) {
  if (!lease_.GrowTo(planned.position + planned.rows)) {
    return absl::InternalError(absl::StrCat("no KV blocks for rows ", planned.position, " to ",
                                            planned.position + planned.rows, " of sequence ", id_));
  }
  if (!started_) {
    started_ = now;
    metrics_->queue_time.Observe(absl::ToDoubleSeconds(queue_time()));
    metrics_->prompt_tokens.Add(static_cast<double>(prompt_tokens()));
  }
  slice->set_sequence_id(id_);
  slice->set_position(static_cast<uint32_t>(planned.position));
  slice->mutable_block_table()->Add(lease_.blocks().begin(), lease_.blocks().end());
  if (const std::optional<observe::Trace>& trace = caller_->trace(); traced_on_ != connection && trace) {
    traced_on_ = connection;
    slice->mutable_trace()->set_traceparent(trace->Traceparent());
    slice->mutable_trace()->set_request_id(trace->request_id);
  }
  FillTokens(planned.position, planned.rows, slice);
  return absl::OkStatus();
}

void Sequence::OfferNext(worker::v1::SequenceSlice* slice) {
  slice->set_greedy_choices(GreedyChoices(*slice));
  if (slice->greedy_choices() == 0) return;
  const auto described = slice->block_table_size();
  if (!lease_.GrowTo(int64_t{slice->position()} + slice->tokens_size() + 1)) return;
  slice->mutable_block_table()->Add(lease_.blocks().begin() + described, lease_.blocks().end());
}

absl::StatusOr<bool> Sequence::Accept(const worker::v1::SequenceSlice& slice,
                                      const worker::v1::SliceOutput& output,
                                      const worker::v1::StepStatistics& statistics, absl::Time now) {
  rows_computed_ += slice.tokens_size();
  execution_.Add(statistics);
  return OnOutput(slice, output, now);
}

void Sequence::Fail(const absl::Status& status) {
  metrics_->CountFailure(status);
  OnFailure(status);
}

}  // namespace isotherm::gateway
