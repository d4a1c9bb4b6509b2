#include "gateway/schedule/step_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace isotherm::gateway {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Ids = std::vector<uint64_t>;

constexpr ScheduleLimits kLimits = {.block_size = 4, .max_decode_rows = 3, .max_prefill_rows = 8};

struct Case {
  std::string name;
  // {id, rows_wanted, rows_computed, blocks_held}
  std::vector<SequenceSnapshot> running, waiting;
  int64_t free_blocks;
  Ids preempted, admitted;
  std::vector<PlannedSlice> slices;  // {id, position, rows}
};

std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }

class StepPlanTest : public testing::TestWithParam<Case> {};

TEST_P(StepPlanTest, PlansAsExpected) {
  const Case& c = GetParam();
  const StepPlan plan = PlanStep({c.running, c.waiting, c.free_blocks, kLimits});
  EXPECT_EQ(plan.preempted, c.preempted);
  EXPECT_EQ(plan.admitted, c.admitted);
  ASSERT_EQ(plan.slices.size(), c.slices.size());
  for (size_t i = 0; i < c.slices.size(); ++i) EXPECT_EQ(plan.slices[i], c.slices[i]) << "slice " << i;
}

INSTANTIATE_TEST_SUITE_P(
    Table, StepPlanTest,
    testing::Values(
        Case{"Nothing", {}, {}, 9, {}, {}, {}},
        Case{"OneDecodes", {{1, 6, 5, 2}}, {}, 0, {}, {}, {{1, 5, 1}}},
        Case{"APromptIsCutIntoChunks", {}, {{1, 20, 0, 0}}, 5, {}, {1}, {{1, 0, 8}}},
        Case{"TheNextChunk", {{1, 20, 8, 2}}, {}, 3, {}, {}, {{1, 8, 8}}},
        Case{"TheLastChunk", {{1, 20, 16, 4}}, {}, 1, {}, {}, {{1, 16, 4}}},
        Case{"DecodeGoesOnBetweenChunks",
             {{1, 6, 5, 2}, {2, 20, 8, 2}},
             {},
             9,
             {},
             {},
             {{1, 5, 1}, {2, 8, 8}}},
        Case{"ChunksShareTheRows", {{1, 11, 8, 2}, {2, 5, 0, 0}}, {}, 9, {}, {}, {{1, 8, 3}, {2, 0, 5}}},
        Case{"AChunkIsNotCutToShareThem", {{1, 11, 8, 2}, {2, 20, 0, 0}}, {}, 9, {}, {}, {{1, 8, 3}}},
        Case{"ASmallerChunkGoesFirst",
             {{1, 11, 8, 2}, {2, 20, 0, 0}, {3, 4, 0, 0}},
             {},
             9,
             {},
             {},
             {{1, 8, 3}, {3, 0, 4}}},
        Case{"NoRowsLeftForTheYounger", {{1, 20, 0, 0}, {2, 20, 0, 0}}, {}, 12, {}, {}, {{1, 0, 8}}},
        Case{"AOneTokenPromptNeedsNoPrefillRows",
             {{1, 20, 0, 0}},
             {{2, 1, 0, 0}},
             9,
             {},
             {2},
             {{1, 0, 8}, {2, 0, 1}}},
        Case{"AdmissionIsInOrder",
             {},
             {{1, 3, 0, 0}, {2, 3, 0, 0}, {3, 2, 0, 0}},
             9,
             {},
             {1, 2, 3},
             {{1, 0, 3}, {2, 0, 3}, {3, 0, 2}}},
        Case{"NoMoreThanTheDecodeRows",
             {{1, 6, 5, 2}, {2, 6, 5, 2}, {3, 6, 5, 2}},
             {{4, 1, 0, 0}},
             9,
             {},
             {},
             {{1, 5, 1}, {2, 5, 1}, {3, 5, 1}}},
        Case{"TheHeadOfTheQueueIsNotPassedOver",
             {{1, 6, 5, 2}},
             {{2, 30, 0, 0}, {3, 2, 0, 0}},
             7,
             {},
             {},
             {{1, 5, 1}}},
        Case{"AdmissionLeavesRoomForRunningPrompts", {{1, 20, 0, 0}}, {{2, 4, 0, 0}}, 5, {}, {}, {{1, 0, 8}}},
        Case{"AdmissionWithThatRoom", {{1, 9, 8, 2}}, {{2, 4, 0, 0}}, 2, {}, {2}, {{1, 8, 1}, {2, 0, 4}}},
        Case{"TheYoungestIsPreempted",
             {{1, 9, 8, 2}, {2, 9, 8, 2}, {3, 6, 5, 2}},
             {},
             0,
             {3},
             {},
             {{1, 8, 1}, {2, 8, 1}}},
        Case{"AsManyAsNeeded", {{1, 20, 12, 3}, {2, 4, 3, 1}, {3, 4, 3, 1}}, {}, 0, {3, 2}, {}, {{1, 12, 8}}},
        Case{"TheYoungestItselfStalls", {{1, 8, 7, 2}, {2, 9, 8, 2}}, {}, 0, {}, {}, {{1, 7, 1}}},
        Case{"AChunkIsNotCutToTheBlocksLeft", {{1, 8, 7, 2}, {2, 20, 8, 2}}, {}, 1, {}, {}, {{1, 7, 1}}},
        Case{"AChunkThatFitsTheBlocksLeft",
             {{1, 8, 7, 2}, {2, 20, 8, 2}},
             {},
             2,
             {},
             {},
             {{1, 7, 1}, {2, 8, 8}}},
        Case{"NobodyIsPreemptedInVain",
             {{1, 8, 7, 2}, {2, 20, 8, 2}, {3, 4, 3, 1}},
             {},
             0,
             {},
             {},
             {{1, 7, 1}, {3, 3, 1}}},
        Case{"TheOldestTakesAllThatTheOthersHold",
             {{1, 20, 8, 2}, {2, 8, 4, 1}, {3, 4, 3, 1}},
             {},
             0,
             {3, 2},
             {},
             {{1, 8, 8}}},
        Case{"NothingIsAdmittedAfterAPreemption",
             {{1, 9, 8, 2}, {2, 6, 5, 2}},
             {{3, 1, 0, 0}},
             0,
             {2},
             {},
             {{1, 8, 1}}}),
    [](const testing::TestParamInfo<Case>& info) { return info.param.name; });

// Sequences with random prompts and lengths share a cache that is far too small for all of them: everyone
// finishes, in bounded time, and blocks never exceed the pool.
TEST(StepPlanPropertyTest, EverySequenceFinishes) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    constexpr int64_t kBlocks = 8;
    const auto number = [&](int64_t low, int64_t high) {
      return std::uniform_int_distribution<int64_t>(low, high)(random);
    };
    std::map<uint64_t, SequenceSnapshot> running, waiting;
    std::map<uint64_t, int64_t> length;
    for (uint64_t id = 1; id <= 12; ++id) {
      const int64_t prompt = number(1, 24);
      waiting[id] = {id, prompt, 0, 0};
      length[id] = number(prompt, kBlocks * kLimits.block_size);
    }
    int64_t free_blocks = kBlocks;
    int64_t steps = 0;
    while (!running.empty() || !waiting.empty()) {
      ASSERT_LT(++steps, 5000) << "seed " << seed;
      ScheduleSnapshot snapshot;
      for (const auto& [id, s] : running) snapshot.running.push_back(s);
      for (const auto& [id, s] : waiting) snapshot.waiting.push_back(s);
      snapshot.free_blocks = free_blocks;
      snapshot.limits = kLimits;
      const StepPlan plan = PlanStep(snapshot);
      ASSERT_FALSE(plan.slices.empty());
      for (const uint64_t id : plan.preempted) {
        SequenceSnapshot sequence = running.at(id);
        running.erase(id);
        free_blocks += sequence.blocks_held;
        waiting[id] = {id, sequence.rows_wanted, 0, 0};
      }
      for (const uint64_t id : plan.admitted) {
        ASSERT_EQ(id, waiting.begin()->first);
        running.insert(waiting.extract(id));
      }
      ASSERT_LE(running.size(), static_cast<size_t>(kLimits.max_decode_rows));
      int64_t prefill_rows = 0;
      for (const PlannedSlice& slice : plan.slices) {
        SequenceSnapshot& sequence = running.at(slice.id);
        ASSERT_EQ(slice.position, sequence.rows_computed);
        ASSERT_GT(slice.rows, 0);
        if (slice.rows > 1) prefill_rows += slice.rows;
        ASSERT_EQ(slice.rows,
                  std::min(sequence.rows_wanted - sequence.rows_computed, kLimits.max_prefill_rows))
            << "a chunk was cut";
        const int64_t blocks = (slice.position + slice.rows + kLimits.block_size - 1) / kLimits.block_size;
        free_blocks -= std::max<int64_t>(blocks - sequence.blocks_held, 0);
        sequence.blocks_held = std::max(blocks, sequence.blocks_held);
        ASSERT_GE(free_blocks, 0);
        sequence.rows_computed += slice.rows;
        if (sequence.rows_computed < sequence.rows_wanted) continue;
        if (++sequence.rows_wanted > length.at(slice.id)) {
          free_blocks += sequence.blocks_held;
          running.erase(slice.id);
        }
      }
      ASSERT_LE(prefill_rows, kLimits.max_prefill_rows);
    }
    EXPECT_EQ(free_blocks, kBlocks);
  }
}

}  // namespace
}  // namespace isotherm::gateway
