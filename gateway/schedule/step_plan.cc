#include "gateway/schedule/step_plan.h"

#include <algorithm>
#include <utility>

namespace isotherm::gateway {
namespace {

class Planner {
 public:
  explicit Planner(const ScheduleSnapshot& snapshot)
      : limits_(snapshot.limits),
        running_(snapshot.running),
        free_blocks_(snapshot.free_blocks),
        prefill_rows_left_(snapshot.limits.max_prefill_rows) {}

  void AdvanceRunning() {
    for (size_t i = 0; i < running_.size(); ++i) {
      const int64_t rows = RowsThisStep(running_[i]);
      const int64_t blocks = BlocksMissing(running_[i], rows);
      if (rows == 0 || !MakeRoom(i, blocks)) continue;
      PlanSlice(running_[i], rows);
      free_blocks_ -= blocks;
      running_[i].blocks_held += blocks;
    }
  }

  void Admit(const std::vector<SequenceSnapshot>& waiting) {
    // A step that had to preempt has no room to give away.
    if (!plan_.preempted.empty()) return;
    int64_t unclaimed = free_blocks_;
    for (const SequenceSnapshot& sequence : running_) {
      unclaimed -= BlocksMissing(sequence, sequence.rows_wanted - sequence.rows_computed);
    }
    int64_t sequences = static_cast<int64_t>(running_.size());
    for (const SequenceSnapshot& sequence : waiting) {
      const int64_t needed = BlocksMissing(sequence, sequence.rows_wanted);
      const int64_t rows = RowsThisStep(sequence);
      if (sequences == limits_.max_decode_rows || needed > unclaimed || rows == 0) return;
      plan_.admitted.push_back(sequence.id);
      PlanSlice(sequence, rows);
      unclaimed -= needed;
      ++sequences;
    }
  }

  StepPlan Take() { return std::move(plan_); }

 private:
  // A chunk is planned whole or not at all: where a prompt is cut shall not depend on who shares the step.
  int64_t RowsThisStep(const SequenceSnapshot& sequence) const {
    const int64_t missing = sequence.rows_wanted - sequence.rows_computed;
    if (missing == 1) return 1;
    const int64_t chunk = std::min(missing, limits_.max_prefill_rows);
    return chunk <= prefill_rows_left_ ? chunk : 0;
  }

  int64_t BlocksMissing(const SequenceSnapshot& sequence, int64_t rows) const {
    const int64_t blocks = (sequence.rows_computed + rows + limits_.block_size - 1) / limits_.block_size;
    return std::max<int64_t>(blocks - sequence.blocks_held, 0);
  }

  // Frees blocks for the running sequence at `index` at the cost of younger ones. False, with nobody
  // preempted, if all they hold would not do; never for the oldest, which fits into the whole cache.
  bool MakeRoom(size_t index, int64_t blocks) {
    int64_t within_reach = free_blocks_;
    for (size_t i = index + 1; i < running_.size(); ++i) within_reach += running_[i].blocks_held;
    if (blocks > within_reach) return false;
    while (blocks > free_blocks_) PreemptYoungest();
    return true;
  }

  void PreemptYoungest() {
    free_blocks_ += running_.back().blocks_held;
    plan_.preempted.push_back(running_.back().id);
    running_.pop_back();
  }

  void PlanSlice(const SequenceSnapshot& sequence, int64_t rows) {
    if (sequence.rows_wanted - sequence.rows_computed > 1) prefill_rows_left_ -= rows;
    plan_.slices.push_back({sequence.id, sequence.rows_computed, rows});
  }

  const ScheduleLimits limits_;
  std::vector<SequenceSnapshot> running_;
  int64_t free_blocks_;
  int64_t prefill_rows_left_;
  StepPlan plan_;
};

}  // namespace

StepPlan PlanStep(const ScheduleSnapshot& snapshot) {
  Planner planner(snapshot);
  planner.AdvanceRunning();
  planner.Admit(snapshot.waiting);
  return planner.Take();
}

}  // namespace isotherm::gateway
