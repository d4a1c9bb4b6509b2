#include "common/exchange/served_sequences.h"

#include <cstddef>
#include <string>

#include "common/observe/log.h"

namespace isotherm::exchange {
namespace {

// More than any batch: what a client can make this take that never says that a sequence is over.
constexpr size_t kMostSequences = 4096;

}  // namespace

void ServedSequences::Take(const worker::v1::SequenceNote& note) {
  const uint64_t id = note.sequence_id();
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = traces_.find(id);
  if (!note.has_begins()) {
    if (found == traces_.end()) return;
    const observe::TraceScope scope(found->second);
    spdlog::info("sequence {} is over", id);
    traces_.erase(found);
  } else if (found == traces_.end() && traces_.size() < kMostSequences) {
    const observe::Trace& trace =
        traces_.emplace(id, observe::BeginTrace(note.begins().traceparent(), note.begins().request_id()))
            .first->second;
    const observe::TraceScope scope(trace);
    spdlog::info("sequence {} begins, request {}", id, trace.request_id);
  }
}

void ServedSequences::End(const absl::Status& status) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [id, trace] : traces_) {
    const observe::TraceScope scope(trace);
    spdlog::log(status.ok() ? spdlog::level::info : spdlog::level::warn, "sequence {} loses its exchange: {}",
                id, status.ok() ? "the GPU worker is gone" : std::string(status.message()));
  }
  traces_.clear();
}

}  // namespace isotherm::exchange
