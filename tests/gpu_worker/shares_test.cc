#include "gpu_worker/cold/shares.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "absl/strings/str_join.h"
#include "common/neuron/mask.h"

namespace isotherm::gpu_worker {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;

TEST(SharesOfTest, AreProportionalAndNeverTiny) {
  EXPECT_THAT(SharesOf({5}), ElementsAre(1));
  EXPECT_THAT(SharesOf({3, 1}), ElementsAre(0.75, 0.25));
  EXPECT_THAT(SharesOf({0, 0, 0}), ElementsAre(1.0 / 3, 1.0 / 3, 1.0 / 3));
  EXPECT_THAT(SharesOf({1e12, 0}), ElementsAre(DoubleNear(1 - kLeastShare, 1e-12), kLeastShare));
  EXPECT_THAT(SharesOf({8, 8, 0}), ElementsAre(DoubleNear(0.5 - kLeastShare / 2, 1e-12),
                                               DoubleNear(0.5 - kLeastShare / 2, 1e-12), kLeastShare));
  const std::vector<double> many = SharesOf(std::vector<double>(32, 1));
  EXPECT_NEAR(std::accumulate(many.begin(), many.end(), 0.0), 1, 1e-12);
}

TEST(DivideNeuronsTest, EveryNeuronHasOneOwner) {
  for (const std::vector<double>& shares :
       {std::vector<double>{1}, {0.5, 0.5}, {1.0 / 64, 63.0 / 64}, {0.2, 0.3, 0.5}, {0.1, 0.2, 0.3, 0.4}}) {
    for (const int64_t ffn : {1, 2, 63, 64, 65, 127, 1000, 11008}) {
      SCOPED_TRACE(absl::StrJoin(shares, " ") + ", FFN " + std::to_string(ffn));
      const std::vector<std::vector<uint64_t>> owned = DivideNeurons(ffn, shares);
      ASSERT_EQ(owned.size(), shares.size());
      int64_t bits = 0;
      for (size_t i = 0; i < owned.size(); ++i) {
        ASSERT_EQ(owned[i].size(), neuron::MaskWords(ffn));
        const int64_t count = neuron::CountBits(owned[i].data(), neuron::MaskWords(ffn));
        // Multiples of the golden ratio stay within a few of their due in any interval.
        EXPECT_NEAR(count, shares[i] * ffn, 4) << "owner " << i;
        bits += count;
      }
      EXPECT_EQ(bits, ffn);  // with the next, exactly once and none past the end
      for (int64_t neuron = 0; neuron < ffn; ++neuron) {
        int owners = 0;
        for (const auto& mask : owned) owners += neuron::TestBit(mask.data(), neuron) ? 1 : 0;
        EXPECT_EQ(owners, 1) << "neuron " << neuron;
      }
    }
  }
}

TEST(DivideNeuronsTest, AnyRangeOfNumbersIsDividedLikeTheWhole) {
  const std::vector<std::vector<uint64_t>> owned = DivideNeurons(11008, {0.25, 0.75});
  for (int64_t begin = 0; begin + 256 <= 11008; begin += 256) {
    EXPECT_NEAR(neuron::CountBits(owned[0].data() + begin / 64, 4), 64, 4) << "from neuron " << begin;
  }
}

TEST(DivideNeuronsTest, ASmallChangeMovesFewNeurons) {
  const auto before = DivideNeurons(10000, {0.5, 0.5});
  const auto after = DivideNeurons(10000, {0.55, 0.45});
  int64_t moved = 0;
  for (int64_t n = 0; n < 10000; ++n) {
    moved += neuron::TestBit(before[0].data(), n) != neuron::TestBit(after[0].data(), n);
  }
  EXPECT_NEAR(moved, 500, 10);
}

TEST(RestrictToTest, WhatOthersOwnCountsAsHot) {
  neuron::Placement placement{.epoch = 3, .ffn = 70, .hot = {{0b1, 0}, {0, 0b100000}}};
  const std::vector<uint64_t> owned = {~uint64_t{0b10}, 0b111100};
  const neuron::Placement restricted = RestrictTo(placement, owned);
  EXPECT_EQ(restricted.epoch, 3);
  EXPECT_THAT(restricted.hot, ElementsAre(ElementsAre(0b11, 0b000011), ElementsAre(0b10, 0b100011)));
  EXPECT_NE(restricted.Digest(), placement.Digest());
}

TEST(RebalanceTest, GoesHalfOfTheWayAndLeavesSmallDifferences) {
  const auto ms = [](double value) { return absl::Milliseconds(value); };
  EXPECT_THAT(Rebalance({0.5, 0.5}, {ms(1), ms(1.2)}, 1.25), ElementsAre(0.5, 0.5));
  EXPECT_THAT(Rebalance({0.5, 0.5}, {ms(1), ms(1.21)}, 1.1),
              ElementsAre(DoubleNear(1.1 / 2.1, 1e-12), DoubleNear(1.0 / 2.1, 1e-12)));
  EXPECT_THAT(Rebalance({0.5, 0.5}, {ms(1), ms(4)}, 1.25),
              ElementsAre(DoubleNear(2.0 / 3, 1e-12), DoubleNear(1.0 / 3, 1e-12)));
  EXPECT_THAT(Rebalance({0.5, 0.5}, {ms(0), ms(4)}, 1.25), ElementsAre(0.5, 0.5));
}

TEST(RebalanceTest, EndsWhereTheWorkersTakeTheSameTime) {
  // 3 ms and 1 ms for all neurons, and a wire of 0.1 ms.
  std::vector<double> shares = {0.5, 0.5};
  for (int i = 0; i < 10; ++i) {
    shares = Rebalance(shares, {absl::Milliseconds(0.1 + 3 * shares[0]), absl::Milliseconds(0.1 + shares[1])},
                       kToleratedSettling);
  }
  EXPECT_NEAR(shares[0], 0.25, 0.025);
  EXPECT_NEAR(shares[0] + shares[1], 1, 1e-12);
}

}  // namespace
}  // namespace isotherm::gpu_worker
