#include "gateway/engine/outbox.h"

#include <utility>

namespace isotherm::gateway {
namespace {

// Progress and chunks alternate at worst. Progress beyond this is old news by the time it would be read.
constexpr size_t kMaxEvents = 8;

}  // namespace

void Outbox::Push(const v1::GenerateProgress& progress) {
  base::MutexLock lock(&mutex_);
  if (!events_.empty() && events_.back().has_progress()) {
    *events_.back().mutable_progress() = progress;
  } else if (events_.size() < kMaxEvents) {
    *events_.emplace_back().mutable_progress() = progress;
  }
}

void Outbox::Push(const v1::GenerateChunk& chunk) {
  base::MutexLock lock(&mutex_);
  if (events_.empty() || !events_.back().has_chunk()) events_.emplace_back();
  v1::GenerateChunk* last = events_.back().mutable_chunk();
  last->mutable_text()->append(chunk.text());
  last->mutable_tokens()->MergeFrom(chunk.tokens());
}

void Outbox::Complete(const v1::GenerateComplete& complete) {
  base::MutexLock lock(&mutex_);
  *events_.emplace_back().mutable_complete() = complete;
  ended_ = true;
}

void Outbox::Fail(const absl::Status& status) {
  base::MutexLock lock(&mutex_);
  if (ended_) return;
  status_ = status;
  ended_ = true;
}

std::optional<v1::GenerateResponse> Outbox::Next() {
  base::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &Outbox::Readable));
  if (events_.empty()) return std::nullopt;
  v1::GenerateResponse event = std::move(events_.front());
  events_.pop_front();
  return event;
}

absl::Status Outbox::status() const {
  base::MutexLock lock(&mutex_);
  return status_;
}

}  // namespace isotherm::gateway
