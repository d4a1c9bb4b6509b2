#ifndef ISOTHERM_COMMON_NEURON_FFN_QUEUES_H_
#define ISOTHERM_COMMON_NEURON_FFN_QUEUES_H_

#include <atomic>
#include <bit>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "common/neuron/ffn_internal.h"

// The sparse path on many cores: each member of the pool owns a partition of the view. Who runs out of
// neurons computes for others what their down rows are multiplied with, which leaves no trace in the result;
// the sums are the owner's, in the view's order.
namespace isotherm::neuron::internal {

// Calls function(position) for the wanted positions that a member owns, in ascending order, until it returns
// false. Every kBlock positions have another owner, the same one in every request, so that rows which were
// asked for in advance lie in the cache of the core that reads them.
template <typename Function>
void ForEachOwned(const Job& job, int64_t owner, int64_t members, const Function& function) {
  for (int64_t first = owner * kBlock; first < job.view->count; first += members * kBlock) {
    for (uint64_t wanted = job.WantedInBlock(first); wanted != 0; wanted &= wanted - 1) {
      if (!function(first + std::countr_zero(wanted))) return;
    }
  }
}

// Shares the wanted neurons out. Thread-safe but for Reset.
class Queues {
 public:
  Queues(int64_t members, int64_t most_positions);
  // Of all queues together.
  static int64_t Entries(int64_t members, int64_t most_positions);

  // Positions of one owner in ascending order.
  struct Claim {
    const int32_t* positions = nullptr;
    int64_t count = 0;  // kBlock at most, but for Stolen
    int64_t first = 0;  // their place among the entries of all queues
    int64_t owner = 0;
  };

  // Empties all, for a new request.
  void Reset();
  // For the owner, from the front of its queue, and about half of what is left at most, so that others find
  // something to help with until the end. Empty when nothing is left.
  Claim Take(const Job& job, int64_t owner);
  // For anybody else, from the back of the longest queue in the same way. Finish must follow.
  Claim Steal(const Job& job);
  void Finish(const Claim& stolen);
  // All that others took from the owner, whose queue is empty. False: they have not finished all of it.
  bool Stolen(int64_t owner, Claim* claim) const;

 private:
  enum class State { kClosed, kOpening, kOpen };
  struct Range {
    int32_t front = 0, back = 0;
  };
  // On cache lines of its own.
  struct alignas(128) Queue {
    std::atomic<State> state{State::kClosed};
    std::atomic<Range> left{Range()};
    std::atomic<int32_t> finished{0};  // of those stolen
    int32_t end = 0;
  };

  // Looks up what the owner has to do, unless somebody did, or waits for who is at it.
  void Open(const Job& job, int64_t owner);
  Claim MakeClaim(int64_t owner, int64_t first, int64_t count) const;

  const int64_t capacity_;  // of one queue
  std::vector<Queue> queues_;
  std::vector<int32_t> entries_;  // [members, capacity]
};

// The member's part, and help for others. `factors` [Queues::Entries, rows] is shared by all members.
void ComputeOwned(const Job& job, int64_t member, Queues& queues, float* factors, Partial* partial);

// Asks for the rows of the member's part to be brought into its caches, until stop().
void PrefetchOwned(const Job& job, int64_t member, int64_t members, absl::FunctionRef<bool()> stop);

}  // namespace isotherm::neuron::internal

#endif  // ISOTHERM_COMMON_NEURON_FFN_QUEUES_H_
