#include "common/neuron/placement.h"

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <vector>

namespace isotherm::neuron {
namespace {

// Two layers of eight neurons of 100 bytes; a cold neuron costs ten times a hot one.
PlanInput SmallInput() {
  PlanInput input;
  input.layers = 2;
  input.ffn = 8;
  input.neuron_bytes = {100, 100};
  input.hot_time = {0, 1e-6};
  input.cold_time = {0, 1e-5};
  input.exchange_seconds = 1e-6;
  return input;
}

std::vector<int64_t> HotCounts(const Plan& plan) {
  std::vector<int64_t> counts;
  for (int64_t layer = 0; layer < plan.placement.layers(); ++layer)
    counts.push_back(plan.placement.HotCount(layer));
  return counts;
}

struct PlanCase {
  std::string name;
  std::function<void(PlanInput&)> change;
  std::vector<std::vector<int32_t>> hot;
};

class PlannerTest : public testing::TestWithParam<PlanCase> {};

TEST_P(PlannerTest, PlacesAsExpected) {
  PlanInput input = SmallInput();
  GetParam().change(input);
  const absl::StatusOr<Plan> plan = PlanPlacement(input);
  ASSERT_TRUE(plan.ok()) << plan.status();
  int64_t bytes = 0;
  for (int64_t layer = 0; layer < input.layers; ++layer) {
    EXPECT_EQ(plan->placement.HotNeurons(layer), GetParam().hot[layer]) << "layer " << layer;
    bytes += plan->placement.HotCount(layer) * input.neuron_bytes[layer];
  }
  EXPECT_EQ(plan->hot_bytes, bytes);
  EXPECT_LE(plan->hot_bytes, input.hot_budget_bytes);
  EXPECT_EQ(plan->placement.epoch, 1u);
}

const std::vector<int32_t> kAll = {0, 1, 2, 3, 4, 5, 6, 7};

INSTANTIATE_TEST_SUITE_P(
    Table, PlannerTest,
    testing::Values(
        PlanCase{"NoBudget", [](PlanInput& input) { input.hot_budget_bytes = 0; }, {{}, {}}},
        PlanCase{"BudgetBelowOneNeuron", [](PlanInput& input) { input.hot_budget_bytes = 99; }, {{}, {}}},
        PlanCase{"BudgetForAll", [](PlanInput& input) { input.hot_budget_bytes = 1600; }, {kAll, kAll}},
        PlanCase{"NoProfileTakesTheLowestNumbers",
                 [](PlanInput& input) {
                   input.hot_budget_bytes = 600;
                   input.exchange_seconds = 0;
                 },
                 // Equal gains go to the lower layer until its hot half would be the slower one.
                 {{0, 1, 2, 3, 4, 5}, {}}},
        PlanCase{"SkewedLayersGetTheBudgetWhereFiringsAre",
                 [](PlanInput& input) {
                   input.hot_budget_bytes = 400;
                   input.profile_tokens = 100;
                   input.counts = {{1, 90, 1, 80, 1, 1, 1, 1}, {1, 1, 70, 1, 1, 1, 60, 1}};
                 },
                 {{1, 3}, {2, 6}}},
        PlanCase{"DearNeuronsWait",
                 [](PlanInput& input) {
                   input.hot_budget_bytes = 400;
                   input.neuron_bytes = {100, 200};
                   input.profile_tokens = 100;
                   input.counts = {{90, 80, 70, 60, 0, 0, 0, 0}, {90, 80, 70, 60, 0, 0, 0, 0}};
                 },
                 {{0, 1, 2, 3}, {}}},
        PlanCase{
            "RemainderNotWorthAnExchangeGoesHot",
            [](PlanInput& input) {
              // One layer fits wholly; its exchange costs as much as 100 cold neurons.
              input.hot_budget_bytes = 900;
              input.exchange_seconds = 1e-3;
              input.profile_tokens = 100;
              input.counts = {{90, 80, 1, 1, 1, 1, 1, 1}, {90, 80, 70, 60, 50, 40, 30, 20}};
            },
            // The second layer saves more by going wholly; the rest buys the hottest neuron of the first.
            {{0}, kAll}},
        PlanCase{"SlowHotSideKeepsNeuronsCold",
                 [](PlanInput& input) {
                   // As fast as the cold side: half and half is best, whatever the budget.
                   input.hot_budget_bytes = 1600;
                   input.hot_time = input.cold_time;
                   input.exchange_seconds = 0;
                 },
                 {{0, 1, 2, 3}, {0, 1, 2, 3}}},
        PlanCase{"NeverFiringNeuronsUseLeftOverBudget",
                 [](PlanInput& input) {
                   input.hot_budget_bytes = 300;
                   input.layers = 1;
                   input.neuron_bytes = {100};
                   input.profile_tokens = 1000;
                   input.counts = {{0, 0, 0, 0, 0, 900, 0, 0}};
                   input.exchange_seconds = 1e-3;
                 },
                 {{0, 1, 5}}}),
    [](const auto& info) { return info.param.name; });

TEST(PlannerTest, CoverageCountsFirings) {
  PlanInput input = SmallInput();
  input.hot_budget_bytes = 300;
  input.profile_tokens = 100;
  input.counts = {{60, 20, 0, 0, 0, 0, 0, 0}, {10, 10, 0, 0, 0, 0, 0, 0}};
  const absl::StatusOr<Plan> plan = PlanPlacement(input);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(HotCounts(*plan), (std::vector<int64_t>{2, 1}));
  EXPECT_DOUBLE_EQ(plan->coverage[0], 1.0);
  EXPECT_DOUBLE_EQ(plan->coverage[1], 0.5);
}

TEST(PlannerTest, PredictedTimeIsTheSumOfTheSlowerHalves) {
  PlanInput input = SmallInput();
  input.hot_budget_bytes = 0;
  input.exchange_seconds = 5e-6;
  input.cold_time = {2e-6, 1e-5};
  const absl::StatusOr<Plan> cold = PlanPlacement(input);
  ASSERT_TRUE(cold.ok());
  EXPECT_NEAR(cold->ffn_seconds, 2 * (5e-6 + 2e-6 + 8e-5), 1e-12);
  input.hot_budget_bytes = 1600;
  const absl::StatusOr<Plan> hot = PlanPlacement(input);
  ASSERT_TRUE(hot.ok());
  EXPECT_NEAR(hot->ffn_seconds, 2 * 8e-6, 1e-12);
}

TEST(PlannerTest, MoreBudgetIsNeverSlower) {
  PlanInput input = SmallInput();
  input.profile_tokens = 1000;
  input.counts = {{500, 300, 200, 100, 50, 20, 10, 1}, {999, 1, 1, 1, 1, 1, 1, 1}};
  input.exchange_seconds = 2e-6;
  double last = std::numeric_limits<double>::infinity();
  for (int64_t budget = 0; budget <= 1600; budget += 100) {
    input.hot_budget_bytes = budget;
    const absl::StatusOr<Plan> plan = PlanPlacement(input);
    ASSERT_TRUE(plan.ok());
    EXPECT_LE(plan->ffn_seconds, last + 1e-12) << budget;
    last = plan->ffn_seconds;
  }
}

TEST(PlannerTest, LargeModelPlansTheSameWayTwiceAndFast) {
  PlanInput input;
  input.layers = 32;
  input.ffn = 14336;
  input.profile_tokens = 100000;
  input.neuron_bytes.assign(input.layers, 24576);
  input.hot_budget_bytes = int64_t{24576} * 32 * 4000;
  input.hot_time = {5e-6, 1e-8};
  input.cold_time = {1e-6, 2e-7};
  input.exchange_seconds = 1e-5;
  for (int64_t layer = 0; layer < input.layers; ++layer) {
    std::vector<double>& counts = input.counts.emplace_back();
    for (int64_t j = 0; j < input.ffn; ++j) {
      counts.push_back(static_cast<double>(90000 / (1 + j * 7919 % input.ffn) * (1 + layer % 3)) / 3);
    }
  }
  const auto start = std::chrono::steady_clock::now();
  const absl::StatusOr<Plan> plan = PlanPlacement(input);
  const auto elapsed = std::chrono::steady_clock::now() - start;
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GT(plan->hot_bytes, input.hot_budget_bytes * 99 / 100);
  EXPECT_EQ(PlanPlacement(input)->placement.Digest(), plan->placement.Digest());
  // Generous for a loaded machine and sanitizers; tens of milliseconds is usual.
  EXPECT_LT(elapsed, std::chrono::seconds(5));
}

TEST(PlannerTest, RefusesInputThatMakesNoSense) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::pair<std::string, std::function<void(PlanInput&)>>> cases = {
      {"layers", [](PlanInput& input) { input.layers = 0; }},
      {"neurons", [](PlanInput& input) { input.ffn = -1; }},
      {"size of a neuron", [](PlanInput& input) { input.neuron_bytes = {100}; }},
      {"size of a neuron",
       [](PlanInput& input) {
         input.neuron_bytes = {100, 0};
       }},
      {"budget", [](PlanInput& input) { input.hot_budget_bytes = -1; }},
      {"hot time", [&](PlanInput& input) { input.hot_time.seconds_per_neuron = nan; }},
      {"cold time", [](PlanInput& input) { input.cold_time.fixed_seconds = -1; }},
      {"exchange time", [&](PlanInput& input) { input.exchange_seconds = nan; }},
      {"computed over active", [](PlanInput& input) { input.predicted_over_active = 0.5; }},
      {"firing counts", [](PlanInput& input) { input.counts = {std::vector<double>(8, 1.0)}; }},
      {"profiled tokens", [](PlanInput& input) { input.counts.assign(2, std::vector<double>(8, 1.0)); }},
      {"layer 1 has 7 firing counts",
       [](PlanInput& input) {
         input.profile_tokens = 1;
         input.counts = {std::vector<double>(8, 1.0), std::vector<double>(7, 1.0)};
       }},
      {"negative or not a number",
       [&](PlanInput& input) {
         input.profile_tokens = 1;
         input.counts.assign(2, std::vector<double>(8, nan));
       }},
  };
  for (const auto& [named, change] : cases) {
    PlanInput input = SmallInput();
    change(input);
    const absl::Status status = PlanPlacement(input).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << named;
    EXPECT_NE(std::string(status.message()).find(named), std::string::npos) << status;
  }
}

TEST(PlacementTest, AllHotAndAllCold) {
  const Placement hot = AllHot(3, 70);
  const Placement cold = AllCold(3, 70);
  EXPECT_EQ(hot.layers(), 3);
  EXPECT_EQ(hot.HotCount(), 210);
  EXPECT_EQ(hot.HotNeurons(2).back(), 69);
  EXPECT_EQ(cold.HotCount(), 0);
  EXPECT_TRUE(cold.HotNeurons(0).empty());
}

TEST(PlacementTest, DigestSeesEveryBitAndField) {
  std::set<std::string> digests;
  const Placement base = AllCold(2, 130);
  EXPECT_EQ(base.Digest().size(), 16u);
  EXPECT_EQ(base.Digest().find_first_not_of("0123456789abcdef"), std::string::npos);
  EXPECT_EQ(base.Digest(), AllCold(2, 130).Digest());
  digests.insert(base.Digest());
  for (int64_t layer = 0; layer < 2; ++layer) {
    for (int64_t neuron = 0; neuron < 130; ++neuron) {
      Placement changed = base;
      SetBit(changed.hot[layer].data(), neuron);
      digests.insert(changed.Digest());
    }
  }
  Placement later = base;
  later.epoch = 2;
  digests.insert(later.Digest());
  digests.insert(AllCold(3, 130).Digest());
  digests.insert(AllCold(2, 129).Digest());
  EXPECT_EQ(digests.size(), 1u + 2 * 130 + 3);
}

// Both workers compute it, perhaps from different builds: the value may not drift.
TEST(PlacementTest, DigestIsStable) { EXPECT_EQ(AllHot(1, 64).Digest(), "4c1c6c6656b565ec"); }

TEST(AssessPlacementTest, TakesWhatItIsGiven) {
  PlanInput input = SmallInput();
  input.profile_tokens = 100;
  input.counts = {{10, 0, 0, 30, 0, 0, 0, 60}, {1, 1, 1, 1, 1, 1, 1, 1}};
  Placement placement = AllCold(2, 8);
  for (int64_t neuron : {3, 4, 7}) SetBit(placement.hot[0].data(), neuron);
  SetAll(placement.hot[1].data(), 8);
  const absl::StatusOr<Plan> plan = AssessPlacement(input, placement);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->placement.hot, placement.hot);
  EXPECT_EQ(plan->hot_bytes, 1100) << "whatever the budget";
  EXPECT_DOUBLE_EQ(plan->coverage[0], 0.9);
  EXPECT_DOUBLE_EQ(plan->coverage[1], 1);
  EXPECT_GT(plan->ffn_seconds, 0);
}

TEST(AssessPlacementTest, RefusesAnotherShape) {
  EXPECT_EQ(AssessPlacement(SmallInput(), AllHot(3, 8)).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(AssessPlacement(SmallInput(), AllHot(2, 9)).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace isotherm::neuron
