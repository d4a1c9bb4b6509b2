#include "common/neuron/mask.h"

#include <gtest/gtest.h>

#include <vector>

namespace isotherm::neuron {
namespace {

TEST(MaskTest, SetAllSetsExactlyTheNeurons) {
  for (int64_t neurons : {1, 2, 63, 64, 65, 127, 128, 129, 5632}) {
    std::vector<uint64_t> mask(MaskWords(neurons) + 1, 0xa5a5a5a5a5a5a5a5);
    SetAll(mask.data(), neurons);
    EXPECT_EQ(CountBits(mask.data(), MaskWords(neurons)), neurons);
    for (int64_t j = 0; j < neurons; ++j) ASSERT_TRUE(TestBit(mask.data(), j)) << j << " of " << neurons;
    EXPECT_EQ(mask.back(), 0xa5a5a5a5a5a5a5a5) << "wrote past the mask of " << neurons;
  }
}

TEST(MaskTest, SetAndClearTouchOneBit) {
  std::vector<uint64_t> mask(3, 0);
  for (int64_t j : {0, 63, 64, 100, 191}) {
    SetBit(mask.data(), j);
    EXPECT_TRUE(TestBit(mask.data(), j));
    EXPECT_EQ(CountBits(mask.data(), 3), 1);
    ClearBit(mask.data(), j);
    EXPECT_EQ(CountBits(mask.data(), 3), 0);
  }
}

TEST(MaskTest, ForEachSetVisitsInAscendingOrder) {
  std::vector<uint64_t> mask(3, 0);
  const std::vector<int64_t> expected = {0, 1, 62, 63, 64, 128, 190, 191};
  for (int64_t j : expected) SetBit(mask.data(), j);
  std::vector<int64_t> visited;
  ForEachSet(mask.data(), 3, [&](int64_t neuron) { visited.push_back(neuron); });
  EXPECT_EQ(visited, expected);
}

TEST(MaskTest, NoNeuronsNeedNoWords) {
  EXPECT_EQ(MaskWords(0), 0);
  SetAll(nullptr, 0);
  EXPECT_EQ(CountBits(nullptr, 0), 0);
}

}  // namespace
}  // namespace isotherm::neuron
