#include "common/observe/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <sstream>
#include <thread>
#include <vector>

#include "absl/strings/str_split.h"

namespace isotherm::observe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(ProgressLineTest, BytesAreGigabytes) {
  EXPECT_EQ(ProgressLine("loading", 1'000'000'000, 4'000'000'000, "bytes", absl::Seconds(2)),
            "loading: 25% (1.00 of 4.00 GB), 0.50 GB/s, 6 s left");
}

TEST(ProgressLineTest, OtherUnitsAreCounted) {
  EXPECT_EQ(ProgressLine("packing", 3, 32, "layers", absl::Seconds(6)),
            "packing: 9% (3 of 32 layers), 0.5 layers/s, 58 s left");
}

TEST(ProgressLineTest, EdgesHaveNoRemainingTime) {
  EXPECT_EQ(ProgressLine("x", 0, 10, "rows", absl::Seconds(2)), "x: 0% (0 of 10 rows), 0 rows/s");
  EXPECT_EQ(ProgressLine("x", 10, 10, "rows", absl::Seconds(2)), "x: 100% (10 of 10 rows), 5 rows/s");
  EXPECT_THAT(ProgressLine("x", 0, 0, "rows", absl::ZeroDuration()), HasSubstr("100%"));
  EXPECT_THAT(ProgressLine("x", 12, 10, "rows", absl::Seconds(2)), HasSubstr("100%"));
}

// With standard error captured there is no terminal, and progress goes to the log.
class ProgressTest : public testing::Test {
 protected:
  ProgressTest() : before_(spdlog::default_logger()) {
    testing::internal::CaptureStderr();
    auto logger =
        std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(out_));
    logger->set_pattern("%v");
    spdlog::set_default_logger(logger);
  }
  ~ProgressTest() override {
    spdlog::set_default_logger(before_);
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  }
  std::vector<std::string> Lines() const { return absl::StrSplit(out_.str(), '\n', absl::SkipEmpty()); }

  std::ostringstream out_;
  std::shared_ptr<spdlog::logger> before_;
  base::FakeClock clock_;
};

TEST_F(ProgressTest, WhatIsDoneWithinTwoSecondsShowsNothing) {
  Progress progress("loading", 10, "rows", clock_);
  clock_.Advance(absl::Seconds(1.9));
  progress.Advance(10);
  progress.Finish();
  EXPECT_THAT(Lines(), IsEmpty());
}

TEST_F(ProgressTest, ShowsALineEveryTwoSecondsAndTheTotal) {
  Progress progress("loading", 100, "rows", clock_);
  for (int i = 0; i < 10; ++i) {
    clock_.Advance(absl::Milliseconds(500));
    progress.Advance(10);
  }
  progress.Finish();
  EXPECT_THAT(Lines(), ElementsAre("loading: 40% (40 of 100 rows), 20 rows/s, 3 s left",
                                   "loading: 80% (80 of 100 rows), 20 rows/s, 1 s left",
                                   "loading: done, 100 rows in 5.0 s, 20 rows/s"));
}

TEST_F(ProgressTest, ThreadsMayAdvanceTogether) {
  Progress progress("loading", 4000, "rows", clock_);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 1000; ++j) progress.Advance(1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  clock_.Advance(absl::Seconds(2));
  progress.Advance(0);
  EXPECT_THAT(Lines(), ElementsAre(HasSubstr("4000 of 4000")));
}

}  // namespace
}  // namespace isotherm::observe
