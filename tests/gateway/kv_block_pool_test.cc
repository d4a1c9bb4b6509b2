#include "gateway/schedule/kv_block_pool.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>

namespace isotherm::gateway {
namespace {

TEST(KvBlockPoolTest, LeasesGrowByWholeBlocksAndNeverShareOne) {
  KvBlockPool pool(5, 16);
  KvLease a = pool.NewLease(), b = pool.NewLease();
  EXPECT_TRUE(a.GrowTo(1));
  EXPECT_TRUE(a.GrowTo(16));
  EXPECT_EQ(a.blocks().size(), 1u);
  EXPECT_TRUE(b.GrowTo(33));
  EXPECT_TRUE(a.GrowTo(17));
  EXPECT_EQ(pool.free_blocks(), 0);
  std::set<uint32_t> blocks(a.blocks().begin(), a.blocks().end());
  blocks.insert(b.blocks().begin(), b.blocks().end());
  EXPECT_EQ(blocks, (std::set<uint32_t>{0, 1, 2, 3, 4}));
}

TEST(KvBlockPoolTest, AFailedGrowthChangesNothing) {
  KvBlockPool pool(3, 4);
  KvLease a = pool.NewLease(), b = pool.NewLease();
  ASSERT_TRUE(a.GrowTo(8));
  const auto before = a.blocks();
  EXPECT_FALSE(a.GrowTo(13));
  EXPECT_EQ(a.blocks(), before);
  EXPECT_EQ(pool.free_blocks(), 1);
  EXPECT_TRUE(b.GrowTo(4));
}

TEST(KvBlockPoolTest, GrowingToFewerRowsKeepsTheBlocks) {
  KvBlockPool pool(3, 4);
  KvLease lease = pool.NewLease();
  ASSERT_TRUE(lease.GrowTo(9));
  EXPECT_TRUE(lease.GrowTo(1));
  EXPECT_EQ(lease.blocks().size(), 3u);
}

TEST(KvBlockPoolTest, BlocksReturnWhenTheLeaseEndsOrMoves) {
  KvBlockPool pool(4, 1);
  {
    KvLease a = pool.NewLease();
    ASSERT_TRUE(a.GrowTo(3));
    KvLease moved = std::move(a);
    EXPECT_EQ(pool.free_blocks(), 1);
    KvLease other = pool.NewLease();
    ASSERT_TRUE(other.GrowTo(1));
    moved = std::move(other);  // its own three come back
    EXPECT_EQ(pool.free_blocks(), 3);
  }
  EXPECT_EQ(pool.free_blocks(), 4);
  EXPECT_FALSE(KvLease().GrowTo(1));
}

}  // namespace
}  // namespace isotherm::gateway
