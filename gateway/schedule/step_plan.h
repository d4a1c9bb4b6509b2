#ifndef ISOTHERM_GATEWAY_SCHEDULE_STEP_PLAN_H_
#define ISOTHERM_GATEWAY_SCHEDULE_STEP_PLAN_H_

#include <cstdint>
#include <vector>

namespace isotherm::gateway {

// What the policy knows about one sequence. Rows are tokens' places in the KV cache.
struct SequenceSnapshot {
  uint64_t id = 0;
  int64_t rows_wanted = 0;    // rows that must be in the cache before the next output; above rows_computed
  int64_t rows_computed = 0;  // 0 while waiting
  int64_t blocks_held = 0;    // 0 while waiting
};

struct ScheduleLimits {
  int64_t block_size = 0;
  // One row of one sequence is a decode row, several are a prefill chunk. max_decode_rows is also the most
  // sequences that run at a time, so that every one of them decodes in every step.
  int64_t max_decode_rows = 0;
  int64_t max_prefill_rows = 0;  // over all chunks of a step
};

struct ScheduleSnapshot {
  // Both in order of arrival. Every waiting sequence fits into the whole, empty cache.
  std::vector<SequenceSnapshot> running;
  std::vector<SequenceSnapshot> waiting;
  int64_t free_blocks = 0;
  ScheduleLimits limits;
};

struct PlannedSlice {
  uint64_t id = 0;
  int64_t position = 0;  // first row
  int64_t rows = 0;

  bool operator==(const PlannedSlice&) const = default;
};

// The next step. Apply in this order: end the leases of `preempted` and put those sequences back to wait,
// move `admitted` to running, then grow the lease of every slice to position + rows; the free blocks suffice.
struct StepPlan {
  std::vector<uint64_t> preempted;
  std::vector<uint64_t> admitted;
  std::vector<PlannedSlice> slices;
};

// Pure and deterministic. First come, first served:
//   - every running sequence that lacks one row decodes; the others prefill in chunks of max_prefill_rows,
//     oldest first, as many whole chunks as max_prefill_rows holds. Where a prompt is cut depends on nobody
//     else, because its sums, and with them its text, depend on where it is cut;
//   - where blocks run out, the youngest running sequences are preempted, so that the oldest always
//     advances. A sequence whose rows do not fit even then keeps its blocks and waits for older ones;
//   - the first waiting sequence, and no other, is admitted next, and only when all rows that it and the
//     running ones want fit into the free blocks. So none is passed over, and what is admitted can prefill
//     to its end.
StepPlan PlanStep(const ScheduleSnapshot& snapshot);

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_SCHEDULE_STEP_PLAN_H_
