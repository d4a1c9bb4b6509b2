#include "common/neuron/ffn_queues.h"

#include <algorithm>

namespace isotherm::neuron::internal {
namespace {

int64_t QueueCapacity(int64_t members, int64_t positions) {
  const int64_t blocks = (positions + kBlock - 1) / kBlock;
  return (blocks + members - 1) / members * kBlock;
}

// How many to claim of what is left: one by one they would be read slowly.
int32_t Share(int32_t left) {
  return left <= 2 ? left : static_cast<int32_t>(std::clamp<int64_t>(left / 2, 2, kBlock));
}

}  // namespace

int64_t Queues::Entries(int64_t members, int64_t most_positions) {
  return members * QueueCapacity(members, most_positions);
}

Queues::Queues(int64_t members, int64_t most_positions)
    : capacity_(QueueCapacity(members, most_positions)), queues_(members), entries_(members * capacity_) {}

void Queues::Reset() {
  for (Queue& queue : queues_) {
    queue.state.store(State::kClosed, std::memory_order_relaxed);
    queue.left.store(Range(), std::memory_order_relaxed);
    queue.finished.store(0, std::memory_order_relaxed);
  }
}

void Queues::Open(const Job& job, int64_t owner) {
  Queue& queue = queues_[owner];
  if (queue.state.load(std::memory_order_acquire) == State::kOpen) return;
  State closed = State::kClosed;
  if (!queue.state.compare_exchange_strong(closed, State::kOpening, std::memory_order_acquire)) {
    AwaitTrue([&] { return queue.state.load(std::memory_order_acquire) == State::kOpen; });
    return;
  }
  int32_t* const begin = &entries_[owner * capacity_];
  int32_t* to = begin;
  ForEachOwned(job, owner, static_cast<int64_t>(queues_.size()), [&](int64_t k) {
    *to++ = static_cast<int32_t>(k);
    return true;
  });
  queue.end = static_cast<int32_t>(to - begin);
  queue.left.store({0, queue.end}, std::memory_order_relaxed);
  queue.state.store(State::kOpen, std::memory_order_release);
}

Queues::Claim Queues::MakeClaim(int64_t owner, int64_t first, int64_t count) const {
  const int64_t entry = owner * capacity_ + first;
  return {&entries_[entry], count, entry, owner};
}

Queues::Claim Queues::Take(const Job& job, int64_t owner) {
  Open(job, owner);
  Queue& queue = queues_[owner];
  Range left = queue.left.load(std::memory_order_relaxed);
  while (left.front < left.back) {
    const int32_t count = Share(left.back - left.front);
    const Range rest{left.front + count, left.back};
    if (queue.left.compare_exchange_weak(left, rest, std::memory_order_relaxed)) {
      return MakeClaim(owner, left.front, count);
    }
  }
  return {};
}

Queues::Claim Queues::Steal(const Job& job) {
  for (;;) {
    int64_t owner = 0;
    Range most;
    for (int64_t i = 0; i < static_cast<int64_t>(queues_.size()); ++i) {
      Open(job, i);
      const Range left = queues_[i].left.load(std::memory_order_relaxed);
      if (left.back - left.front <= most.back - most.front) continue;
      most = left;
      owner = i;
    }
    if (most.front >= most.back) return {};
    const int32_t count = Share(most.back - most.front);
    const Range rest{most.front, most.back - count};
    if (queues_[owner].left.compare_exchange_strong(most, rest, std::memory_order_relaxed)) {
      return MakeClaim(owner, rest.back, count);
    }
  }
}

void Queues::Finish(const Claim& stolen) {
  queues_[stolen.owner].finished.fetch_add(static_cast<int32_t>(stolen.count), std::memory_order_release);
}

bool Queues::Stolen(int64_t owner, Claim* claim) const {
  const Queue& queue = queues_[owner];
  const int32_t first = queue.left.load(std::memory_order_relaxed).back;
  if (queue.finished.load(std::memory_order_acquire) < queue.end - first) return false;
  *claim = MakeClaim(owner, first, queue.end - first);
  return true;
}

}  // namespace isotherm::neuron::internal
