#include "common/base/random_id.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace isotherm::base {
namespace {

TEST(RandomIdTest, IsThirtyTwoHexadecimalDigitsAndNeverTheSame) {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::string id = RandomId();
    ASSERT_THAT(id, testing::MatchesRegex("[0-9a-f]+"));
    ASSERT_EQ(id.size(), 32u);
    ASSERT_TRUE(seen.insert(id).second) << id;
  }
}

}  // namespace
}  // namespace isotherm::base
