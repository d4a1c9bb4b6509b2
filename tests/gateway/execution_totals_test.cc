#include "gateway/engine/execution_totals.h"

#include <gtest/gtest.h>

namespace isotherm::gateway {
namespace {

worker::v1::StepStatistics Step(uint64_t exchanges, double latency, bool exact) {
  worker::v1::StepStatistics step;
  step.set_neurons_total(100);
  step.set_neurons_computed(50);
  step.set_hot_neurons_computed(10);
  step.set_exchanges(exchanges);
  step.set_exchange_latency_seconds(latency);
  step.set_cpu_worker_wait_seconds(0.25);
  step.set_transport("inline");
  step.set_predictor("gate");
  step.set_exact(exact);
  return step;
}

TEST(ExecutionTotalsTest, NothingHappened) {
  const v1::ExecutionStatistics summary = ExecutionTotals().Summary();
  EXPECT_EQ(summary.computed_share(), 0);
  EXPECT_EQ(summary.hot_share(), 0);
  EXPECT_EQ(summary.exchanges(), 0u);
  EXPECT_EQ(summary.exchange_latency().nanos(), 0);
  EXPECT_EQ(summary.transport(), "none");
}

TEST(ExecutionTotalsTest, SharesAreOfTheSums) {
  ExecutionTotals totals;
  totals.Add(Step(1, 0.001, true));
  worker::v1::StepStatistics large = Step(1, 0.001, true);
  large.set_neurons_total(900);
  totals.Add(large);
  const v1::ExecutionStatistics summary = totals.Summary();
  EXPECT_DOUBLE_EQ(summary.computed_share(), 0.1);
  EXPECT_DOUBLE_EQ(summary.hot_share(), 0.2);
  EXPECT_EQ(summary.cold_neurons_computed(), 80u);
  EXPECT_EQ(summary.mode(), v1::EXECUTION_MODE_EXACT);
  EXPECT_EQ(summary.transport(), "inline");
  EXPECT_EQ(summary.predictor(), "gate");
  EXPECT_EQ(totals.cpu_worker_wait(), absl::Milliseconds(500));
}

TEST(ExecutionTotalsTest, OnePredictedStepMakesItPredicted) {
  ExecutionTotals totals;
  totals.Add(Step(1, 0.001, true));
  totals.Add(Step(1, 0.001, false));
  totals.Add(Step(1, 0.001, true));
  EXPECT_EQ(totals.Summary().mode(), v1::EXECUTION_MODE_PREDICTED);
}

TEST(ExecutionTotalsTest, TheMedianCountsExchangesNotSteps) {
  ExecutionTotals totals;
  totals.Add(Step(1, 0.001, true));
  totals.Add(Step(1, 0.002, true));
  totals.Add(Step(10, 0.003, true));
  EXPECT_EQ(totals.Summary().exchange_latency().nanos(), 3000000);
}

}  // namespace
}  // namespace isotherm::gateway
