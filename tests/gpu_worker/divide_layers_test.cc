#include "gpu_worker/graph/divide_layers.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace isotherm::gpu_worker {
namespace {

// Where the parts after the first begin.
std::vector<int64_t> Cuts(const ModelWeight& weight, int64_t parts) {
  std::vector<int64_t> cuts;
  int64_t end = 0;
  for (const LayerRange& range : DivideLayers(weight, parts)) {
    EXPECT_EQ(range.begin, end);
    EXPECT_GT(range.count(), 0);
    end = range.end;
    if (range.begin > 0) cuts.push_back(range.begin);
  }
  EXPECT_EQ(end, static_cast<int64_t>(weight.layers.size()));
  return cuts;
}

TEST(DivideLayersTest, TheHeaviestPartIsAsLightAsCanBe) {
  using Expected = std::vector<int64_t>;
  EXPECT_EQ(Cuts({{1, 1, 1, 1, 1, 1}}, 1), Expected{});
  EXPECT_EQ(Cuts({{1, 1, 1, 1, 1, 1}}, 2), Expected{3});
  EXPECT_EQ(Cuts({{1, 1, 1, 1, 1, 1}}, 3), (Expected{2, 4}));
  EXPECT_EQ(Cuts({{5, 1, 1, 1, 1, 1}}, 2), Expected{1});
  EXPECT_EQ(Cuts({{1, 1, 1, 1, 1, 5}}, 2), Expected{5});
  EXPECT_EQ(Cuts({{3, 3, 3}}, 3), (Expected{1, 2}));
}

TEST(DivideLayersTest, TheFirstAndTheLastPartCarryMoreThanTheirLayers) {
  EXPECT_EQ(Cuts({.layers = {2, 2, 2, 2}, .first = 4, .last = 0}, 2), std::vector<int64_t>{1});
  EXPECT_EQ(Cuts({.layers = {2, 2, 2, 2}, .first = 0, .last = 4}, 2), std::vector<int64_t>{3});
  EXPECT_EQ(Cuts({.layers = {2, 2, 2, 2}, .first = 3, .last = 3}, 2), std::vector<int64_t>{2});
}

TEST(DivideLayersTest, APartOfManyLikeLayersHoldsAtMostItsShareAndALayer) {
  for (const int64_t parts : {2, 3, 4, 7, 8}) {
    const ModelWeight weight{std::vector<int64_t>(80, 100), 70, 130};
    const double share = (80 * 100.0 + 70 + 130) / static_cast<double>(parts);
    for (const LayerRange& range : DivideLayers(weight, parts)) {
      const int64_t held = 100 * range.count() + (range.begin == 0 ? 70 : 0) + (range.end == 80 ? 130 : 0);
      EXPECT_LE(static_cast<double>(held), share + 100) << parts;
    }
  }
}

}  // namespace
}  // namespace isotherm::gpu_worker
