#include "common/observe/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace isotherm::observe {
namespace {

using testing::HasSubstr;
using testing::Not;

Registry& Global() { return Registry::Global(); }

TEST(MetricsTest, TheSameNameAndLabelsAreTheSameSeries) {
  const Counter first = Global().GetCounter("isotherm_test_tokens_total", "Tokens.", {{"kind", "prompt"}});
  const Counter second = Global().GetCounter("isotherm_test_tokens_total", "Tokens.", {{"kind", "prompt"}});
  const Counter other = Global().GetCounter("isotherm_test_tokens_total", "Tokens.", {{"kind", "generated"}});
  first.Add();
  second.Add(2.5);
  other.Add(100);
  EXPECT_THAT(Global().Render(), HasSubstr("isotherm_test_tokens_total{kind=\"prompt\"} 3.5\n"));
  EXPECT_THAT(Global().Render(), HasSubstr("isotherm_test_tokens_total{kind=\"generated\"} 100\n"));
  EXPECT_THAT(Global().Render(), HasSubstr("# HELP isotherm_test_tokens_total Tokens.\n"));
}

TEST(MetricsTest, AGaugeShowsTheLastValue) {
  const Gauge gauge = Global().GetGauge("isotherm_test_blocks", "Blocks.");
  gauge.Set(7);
  gauge.Add(-2);
  EXPECT_THAT(Global().Render(), HasSubstr("isotherm_test_blocks 5\n"));
}

TEST(MetricsTest, AHistogramCountsInItsBuckets) {
  const Histogram histogram = Global().GetHistogram("isotherm_test_seconds", "Time.", {0.1, 1});
  histogram.Observe(0.05);
  histogram.Observe(0.5);
  histogram.Observe(50);
  const std::string text = Global().Render();
  EXPECT_THAT(text, HasSubstr("isotherm_test_seconds_bucket{le=\"0.1\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("isotherm_test_seconds_bucket{le=\"1\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("isotherm_test_seconds_bucket{le=\"+Inf\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("isotherm_test_seconds_count 3\n"));
}

TEST(MetricsTest, BucketsRiseInThirdsOfDecades) {
  const std::vector<double> latency = LatencyBuckets();
  EXPECT_EQ(latency.size(), 22u);
  EXPECT_DOUBLE_EQ(latency.front(), 1e-4);
  EXPECT_EQ(latency[1], 0.000215);
  EXPECT_DOUBLE_EQ(latency.back(), 1000);
  const std::vector<double> exchange = ExchangeBuckets();
  EXPECT_EQ(exchange.size(), 19u);
  EXPECT_DOUBLE_EQ(exchange.front(), 1e-6);
  EXPECT_DOUBLE_EQ(exchange.back(), 1);
  for (const std::vector<double>& buckets : {latency, exchange}) {
    for (size_t i = 1; i < buckets.size(); ++i) EXPECT_NEAR(buckets[i] / buckets[i - 1], 2.154, 0.01) << i;
  }
}

TEST(MetricsTest, AStateShowsItsPresentExplanationAlone) {
  const std::string name = "isotherm_test_state";
  Global().SetState(name, "State.", {{"service", "a"}}, {{"cause", "loading"}}, 0);
  Global().SetState(name, "State.", {{"service", "b"}}, {{"cause", "loading"}}, 0);
  Global().SetState(name, "State.", {{"service", "a"}}, {{"cause", ""}}, 1);
  Global().SetState(name, "State.", {{"service", "a"}}, {{"cause", ""}}, 1);
  const std::string text = Global().Render();
  EXPECT_THAT(text, HasSubstr("isotherm_test_state{cause=\"\",service=\"a\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("isotherm_test_state{cause=\"loading\",service=\"b\"} 0\n"));
  EXPECT_THAT(text, Not(HasSubstr("{cause=\"loading\",service=\"a\"}")));
}

TEST(MetricsTest, NamesThatPrometheusRefusesCountNothingAndDoNotThrow) {
  Global().GetCounter("not a name", "Bad.").Add();
  Global().GetGauge("isotherm_test_bad_label", "Bad.", {{"not a label", "x"}}).Set(1);
  Global().GetCounter("isotherm_test_two_kinds", "Counter.").Add();
  Global().GetGauge("isotherm_test_two_kinds", "Gauge.").Set(5);
  EXPECT_THAT(Global().Render(), HasSubstr("isotherm_test_two_kinds 1\n"));
  EXPECT_THAT(Global().Render(), Not(HasSubstr("not a")));
  Counter().Add();
  Gauge().Set(1);
  Histogram().Observe(1);
}

TEST(MetricsTest, LabelValuesAreEscaped) {
  Global().GetGauge("isotherm_test_escaped", "Escaped.", {{"path", "a\"b\\c\nd"}}).Set(1);
  EXPECT_THAT(Global().Render(), HasSubstr("isotherm_test_escaped{path=\"a\\\"b\\\\c\\nd\"} 1\n"));
}

TEST(MetricsTest, ThreadsMayCountTogether) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int j = 0; j < 1000; ++j) Global().GetCounter("isotherm_test_threads_total", "Threads.").Add();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(Global().Render(), HasSubstr("isotherm_test_threads_total 4000\n"));
}

}  // namespace
}  // namespace isotherm::observe
