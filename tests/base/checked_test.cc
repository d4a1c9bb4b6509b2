#include "common/base/checked.h"

#include <gtest/gtest.h>

#include <limits>

namespace isotherm::base {
namespace {

constexpr int64_t kMostSigned = std::numeric_limits<int64_t>::max();
constexpr int64_t kLeastSigned = std::numeric_limits<int64_t>::min();
constexpr uint64_t kMostUnsigned = std::numeric_limits<uint64_t>::max();

TEST(CheckedTest, AddsUpToTheEdge) {
  EXPECT_EQ(CheckedAdd<int64_t>(kMostSigned - 1, 1), kMostSigned);
  EXPECT_EQ(CheckedAdd<int64_t>(kMostSigned, 1), std::nullopt);
  EXPECT_EQ(CheckedAdd<int64_t>(kLeastSigned, -1), std::nullopt);
  EXPECT_EQ(CheckedAdd<uint64_t>(kMostUnsigned, 0), kMostUnsigned);
  EXPECT_EQ(CheckedAdd<uint64_t>(kMostUnsigned, 1), std::nullopt);
}

TEST(CheckedTest, MultipliesUpToTheEdge) {
  EXPECT_EQ(CheckedMul<int64_t>(kMostSigned / 2, 2), kMostSigned - 1);
  EXPECT_EQ(CheckedMul<int64_t>(kMostSigned / 2 + 1, 2), std::nullopt);
  EXPECT_EQ(CheckedMul<int64_t>(kLeastSigned, -1), std::nullopt);
  EXPECT_EQ(CheckedMul<uint64_t>(uint64_t{1} << 32, uint64_t{1} << 31), uint64_t{1} << 63);
  EXPECT_EQ(CheckedMul<uint64_t>(uint64_t{1} << 32, uint64_t{1} << 32), std::nullopt);
  EXPECT_EQ(CheckedMul<uint64_t>(0, kMostUnsigned), 0u);
}

TEST(CheckedTest, WorksAtCompileTime) {
  static_assert(CheckedAdd<int64_t>(2, 3) == 5);
  static_assert(!CheckedMul<int64_t>(kMostSigned, kMostSigned));
}

}  // namespace
}  // namespace isotherm::base
