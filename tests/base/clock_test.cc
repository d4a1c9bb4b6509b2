#include "common/base/clock.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/time/clock.h"

namespace isotherm::base {
namespace {

TEST(RealClockTest, NeverGoesBackAndSleepsLongEnough) {
  Clock& clock = Clock::Real();
  const absl::Time start = clock.Now();
  EXPECT_LT(absl::AbsDuration(start - absl::Now()), absl::Minutes(1));
  clock.SleepFor(absl::Milliseconds(20));
  EXPECT_GE(clock.Now() - start, absl::Milliseconds(20));
  clock.SleepUntil(start);  // in the past: returns
}

TEST(FakeClockTest, StandsStillUntilAdvanced) {
  FakeClock clock(absl::FromUnixSeconds(100));
  EXPECT_EQ(clock.Now(), absl::FromUnixSeconds(100));
  clock.Advance(absl::Seconds(2.5));
  EXPECT_EQ(clock.Now(), absl::FromUnixSeconds(100) + absl::Seconds(2.5));
}

TEST(FakeClockTest, WakesASleeperAtItsTimeAndNotBefore) {
  FakeClock clock;
  std::atomic<bool> awake = false;
  std::thread sleeper([&] {
    clock.SleepFor(absl::Seconds(10));
    awake = true;
  });
  while (clock.sleepers() == 0) std::this_thread::yield();
  clock.Advance(absl::Seconds(9));
  Clock::Real().SleepFor(absl::Milliseconds(20));
  EXPECT_FALSE(awake);
  EXPECT_EQ(clock.sleepers(), 1);
  clock.Advance(absl::Seconds(1));
  sleeper.join();
  EXPECT_TRUE(awake);
  EXPECT_EQ(clock.sleepers(), 0);
}

}  // namespace
}  // namespace isotherm::base
