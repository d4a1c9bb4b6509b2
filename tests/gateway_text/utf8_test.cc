#include "gateway/text/utf8.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/gateway_text/text_fixtures.h"

namespace isotherm::text {
namespace {

constexpr char kReplacement[] = "\uFFFD";

std::string Lossy(std::string bytes) {
  std::string text;
  MoveCompleteUtf8(&bytes, &text);
  return bytes.empty() ? text : text + "|" + std::to_string(bytes.size());
}

TEST(Utf8Test, ReadsEveryCharacter) {
  for (char32_t code_point = 0; code_point <= 0x10FFFF; ++code_point) {
    const bool surrogate = code_point >= 0xD800 && code_point <= 0xDFFF;
    const Utf8Step step = NextUtf8(Utf8Of(code_point) + "\x80");
    ASSERT_EQ(step.kind == Utf8Step::Kind::kCharacter, !surrogate) << static_cast<uint32_t>(code_point);
    if (surrogate) continue;
    ASSERT_TRUE(step.code_point == code_point) << static_cast<uint32_t>(code_point);
    ASSERT_EQ(step.length, Utf8Of(code_point).size());
  }
}

TEST(Utf8Test, FindsWhereTextStopsBeingUtf8) {
  EXPECT_EQ(ValidUtf8Prefix(""), 0u);
  EXPECT_EQ(ValidUtf8Prefix("a\u00e9\u4f60\U0001f600"), 10u);
  EXPECT_EQ(ValidUtf8Prefix("ab\xFF"), 2u);
  EXPECT_EQ(ValidUtf8Prefix("\u00e9\xC3"), 2u) << "cut";
  EXPECT_EQ(ValidUtf8Prefix("\xC0\x80"), 0u) << "overlong";
  EXPECT_EQ(ValidUtf8Prefix("\xE0\x9F\xBF"), 0u) << "overlong";
  EXPECT_EQ(ValidUtf8Prefix("\xF0\x8F\xBF\xBF"), 0u) << "overlong";
  EXPECT_EQ(ValidUtf8Prefix("\xED\xA0\x80"), 0u) << "surrogate";
  EXPECT_EQ(ValidUtf8Prefix("\xF4\x90\x80\x80"), 0u) << "past U+10FFFF";
  EXPECT_EQ(ValidUtf8Prefix("\xF5\x80\x80\x80"), 0u) << "past U+10FFFF";
}

// Table 3-8 and its neighbours in the Unicode standard, chapter 3.9.
TEST(Utf8Test, ReplacesMaximalSubparts) {
  const std::string r = kReplacement;
  EXPECT_EQ(Lossy("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
            "a" + r + r + r + "b" + r + "c" + r + r + "d");
  EXPECT_EQ(Lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Lossy("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Lossy("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), r + r + r + r + r + "A" + r + r + "B");
}

TEST(Utf8Test, KeepsTheBeginningOfACharacter) {
  EXPECT_EQ(Lossy("a\xF0\x9F\x98"), "a|3");
  EXPECT_EQ(Lossy("a\xE4"), "a|1");
  EXPECT_EQ(Lossy("\xFF\xC3"), std::string(kReplacement) + "|1");
}

}  // namespace
}  // namespace isotherm::text
