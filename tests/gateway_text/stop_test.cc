#include "gateway/text/stop.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "gateway/text/utf8.h"

namespace isotherm::text {
namespace {

TEST(StopMatcherTest, PassesEverythingWithoutStopStrings) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Push("any text"), "any text");
  EXPECT_EQ(matcher.Flush(), "");
  StopMatcher of_nothing({"", ""});
  EXPECT_EQ(of_nothing.Push("any text"), "any text");
  EXPECT_FALSE(of_nothing.match().has_value());
}

TEST(StopMatcherTest, HoldsBackWhatMayBecomeAStopString) {
  StopMatcher matcher({"</s>"});
  EXPECT_EQ(matcher.Push("a<"), "a");
  EXPECT_EQ(matcher.Push("/"), "");
  EXPECT_EQ(matcher.Push("b"), "</b");
  EXPECT_EQ(matcher.Push("<</"), "<");
  EXPECT_FALSE(matcher.match().has_value());
  EXPECT_EQ(matcher.Flush(), "</");
  // What was flushed is not the beginning of anything.
  EXPECT_EQ(matcher.Push("s>"), "s>");
}

TEST(StopMatcherTest, FindsAStopStringAcrossPieces) {
  StopMatcher matcher({"\n\nUser:", "END"});
  EXPECT_EQ(matcher.Push("text\n"), "text");
  EXPECT_EQ(matcher.Push("\n"), "");
  EXPECT_EQ(matcher.Push("\nUs"), "\n");
  EXPECT_EQ(matcher.Push("er: more"), "");
  ASSERT_TRUE(matcher.match().has_value());
  EXPECT_EQ(matcher.match()->index, 0u);
  EXPECT_EQ(matcher.match()->position, 5u);
  EXPECT_EQ(matcher.Push("END"), "");
  EXPECT_EQ(matcher.Flush(), "");
  EXPECT_EQ(matcher.match()->index, 0u);
}

TEST(StopMatcherTest, TheFirstToBeCompleteWins) {
  StopMatcher matcher({"abcd", "bc"});
  EXPECT_EQ(matcher.Push("xabcd"), "xa");
  EXPECT_EQ(matcher.match()->index, 1u);
  EXPECT_EQ(matcher.match()->position, 2u);
}

TEST(StopMatcherTest, OfThoseThatEndTogetherTheLongestWins) {
  StopMatcher matcher({"c", "abc", "bc"});
  EXPECT_EQ(matcher.Push("xabc"), "x");
  EXPECT_EQ(matcher.match()->index, 1u);
}

// The definition, spelled out: the smallest end, then the smallest begin.
std::optional<StopMatcher::Match> Search(const std::string& text, const std::vector<std::string>& stops) {
  for (uint64_t end = 1; end <= text.size(); ++end) {
    std::optional<StopMatcher::Match> longest;
    for (uint64_t i = 0; i < stops.size(); ++i) {
      const uint64_t length = stops[i].size();
      if (length == 0 || length > end || text.compare(end - length, length, stops[i]) != 0) continue;
      if (!longest.has_value() || end - length < longest->position) longest = {i, end - length};
    }
    if (longest.has_value()) return longest;
  }
  return std::nullopt;
}

TEST(StopMatcherTest, AgreesWithTheDefinitionHoweverTheTextIsCut) {
  std::mt19937 random(7);
  const std::vector<std::string> letters = {"a", "b", "\u00e9", "\U0001f600"};
  const auto word = [&](uint64_t most) {
    std::string result;
    for (uint64_t n = random() % (most + 1); n > 0; --n) result += letters[random() % letters.size()];
    return result;
  };
  int matches = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops;
    for (uint64_t n = random() % 4; n > 0; --n) stops.push_back(word(5));
    StopMatcher matcher(stops);
    std::string text;
    std::string released;
    for (int piece = 0; piece < 8; ++piece) {
      const std::string more = word(4);
      text += more;
      const std::string now = matcher.Push(more);
      ASSERT_EQ(ValidUtf8Prefix(now), now.size());
      released += now;
    }
    released += matcher.Flush();
    const std::optional<StopMatcher::Match> expected = Search(text, stops);
    ASSERT_EQ(matcher.match().has_value(), expected.has_value()) << text;
    ASSERT_EQ(released, text.substr(0, expected.has_value() ? expected->position : text.size()));
    if (!expected.has_value()) continue;
    ++matches;
    ASSERT_EQ(matcher.match()->position, expected->position);
    ASSERT_EQ(stops[matcher.match()->index], stops[expected->index]);
  }
  EXPECT_GT(matches, 5000);
}

TEST(StopMatcherTest, LongRunsOfNearMatchesAreLinear) {
  constexpr uint64_t kLength = 1 << 20;
  StopMatcher matcher({std::string(kLength / 2, 'a') + "b"});
  uint64_t released = 0;
  for (uint64_t i = 0; i < kLength; ++i) released += matcher.Push("a").size();
  EXPECT_EQ(released, kLength / 2);
  EXPECT_EQ(matcher.Flush().size(), kLength / 2);
}

}  // namespace
}  // namespace isotherm::text
