#include "gpu_worker/service/sequence_log.h"

#include <cstddef>

#include "common/observe/log.h"

namespace isotherm::gpu_worker {
namespace {

namespace v1 = worker::v1;

// More than any batch: what a gateway can make this take that never says that a sequence is over.
constexpr size_t kMostSequences = 4096;

}  // namespace

void SequenceLog::Begin(const v1::StepRequest& request) {
  for (const uint64_t id : request.ended()) End(id, "is over");
  for (const v1::SequenceSlice& slice : request.slices()) {
    if (!slice.has_trace() || live_.contains(slice.sequence_id()) || live_.size() >= kMostSequences) continue;
    Entry& entry = live_[slice.sequence_id()];
    entry.trace = observe::BeginTrace(slice.trace().traceparent(), slice.trace().request_id());
    news_ = true;
    const observe::TraceScope scope(entry.trace);
    spdlog::info("sequence {} begins, request {}", slice.sequence_id(), entry.trace.request_id);
  }
}

void SequenceLog::End(uint64_t id, const char* why) {
  const auto found = live_.find(id);
  if (found == live_.end()) return;
  const Entry& entry = found->second;
  const observe::TraceScope scope(entry.trace);
  spdlog::info("sequence {} {}: {} rows in {} steps of {:.3f} s, {:.3f} s of it waiting for CPU workers", id,
               why, entry.rows, entry.steps, entry.seconds, entry.cpu_worker_wait_seconds);
  if (entry.told) {
    over_.push_back(id);
    news_ = true;
  }
  live_.erase(found);
}

void SequenceLog::Tell(exchange::Channel& channel, int64_t opening) {
  if (!news_ && opening == opening_) return;
  if (opening != opening_) {
    over_.clear();
    for (auto& [id, entry] : live_) entry.told = false;
    opening_ = opening;
  }
  for (const uint64_t id : over_) {
    v1::SequenceNote note;
    note.set_sequence_id(id);
    channel.Note(note);
  }
  over_.clear();
  for (auto& [id, entry] : live_) {
    if (entry.told) continue;
    v1::SequenceNote note;
    note.set_sequence_id(id);
    note.mutable_begins()->set_traceparent(entry.trace.Traceparent());
    note.mutable_begins()->set_request_id(entry.trace.request_id);
    channel.Note(note);
    entry.told = true;
  }
  news_ = false;
}

void SequenceLog::Count(const v1::StepRequest& request, const absl::StatusOr<v1::StepSuccess>& success) {
  const std::string failure(success.status().message());
  for (const v1::SequenceSlice& slice : request.slices()) {
    const auto found = live_.find(slice.sequence_id());
    if (found == live_.end()) continue;
    Entry& entry = found->second;
    if (success.ok()) {
      entry.rows += slice.tokens_size();
      ++entry.steps;
      entry.seconds += success->statistics().seconds();
      entry.cpu_worker_wait_seconds += success->statistics().cpu_worker_wait_seconds();
    } else if (entry.failure != failure) {  // what is sent again and again may fail as often
      const observe::TraceScope scope(entry.trace);
      spdlog::warn("sequence {}: step {} failed: {}", slice.sequence_id(), request.step_id(), failure);
    }
    entry.failure = failure;
  }
}

void SequenceLog::EndAll() {
  while (!live_.empty()) End(live_.begin()->first, "ends with its gateway's stream");
}

}  // namespace isotherm::gpu_worker
