#include "gpu_worker/service/firing_log.h"

#include <gtest/gtest.h>

namespace isotherm::gpu_worker {
namespace {

TEST(FiringLogTest, WithoutACpuWorkerHotFiringsAreAll) {
  FiringLog log(2, 3);
  EXPECT_EQ(log.totals().tokens, 0);
  log.AddHot({{1, 0, 2}, {0, 0, 5}});
  log.AddHot({{1, 1, 0}, {0, 3, 0}});
  EXPECT_EQ(log.totals().counts, FiringCounts({{0, 0, 0}, {0, 0, 0}})) << "not settled yet";
  log.Settle({}, 7);
  EXPECT_EQ(log.totals().tokens, 7);
  EXPECT_EQ(log.totals().counts, FiringCounts({{2, 1, 2}, {0, 3, 5}}));
}

TEST(FiringLogTest, ColdFiringsAreThoseSinceTheExchangeWasOpened) {
  FiringLog log(1, 3);
  log.OnExchangeOpened(0);
  log.AddHot({{4, 0, 0}});
  log.Settle({{0, 2, 1}}, 5);
  EXPECT_EQ(log.totals().counts, FiringCounts({{4, 2, 1}}));
  log.AddHot({{1, 0, 0}});
  log.Settle({{0, 3, 1}}, 6);
  EXPECT_EQ(log.totals().tokens, 6);
  EXPECT_EQ(log.totals().counts, FiringCounts({{5, 3, 1}}));
}

TEST(FiringLogTest, ALostConnectionTakesWhatWasNotSettledOnBothSides) {
  FiringLog log(1, 2);
  log.OnExchangeOpened(0);
  log.AddHot({{3, 0}});
  log.Settle({{0, 4}}, 5);
  log.AddHot({{90, 0}});  // its cold half is lost with the worker
  log.OnExchangeOpened(12);
  EXPECT_EQ(log.totals().tokens, 5);
  log.AddHot({{1, 0}});
  log.Settle({{0, 1}}, 14);
  EXPECT_EQ(log.totals().tokens, 7);
  EXPECT_EQ(log.settled_rows(), 14);
  EXPECT_EQ(log.totals().counts, FiringCounts({{4, 5}}));
}

}  // namespace
}  // namespace isotherm::gpu_worker
