#include "gateway/text/symbol_merger.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace isotherm::text {
namespace {

std::vector<Symbol> Characters(uint64_t count) {
  std::vector<Symbol> symbols;
  for (uint64_t at = 0; at < count; ++at) symbols.push_back({at, at + 1, 0});
  return symbols;
}

// How the symbols divide the text, as "ab c".
std::string Shown(const std::string& text, const std::vector<Symbol>& symbols) {
  std::string shown;
  for (const Symbol& symbol : symbols) {
    shown += (shown.empty() ? "" : " ") + text.substr(symbol.begin, symbol.end - symbol.begin);
  }
  return shown;
}

// The definition, spelled out: look at all neighbours, join the best of them, begin again.
template <typename FindJoin>
std::vector<Symbol> MergeSlowly(std::vector<Symbol> symbols, const FindJoin& find_join) {
  while (true) {
    std::optional<Join> best;
    uint64_t best_at = 0;
    for (uint64_t at = 0; at + 1 < symbols.size(); ++at) {
      const std::optional<Join> join = find_join(symbols[at], symbols[at + 1]);
      if (join.has_value() && (!best.has_value() || join->rank < best->rank)) {
        best = join;
        best_at = at;
      }
    }
    if (!best.has_value()) return symbols;
    symbols[best_at].end = symbols[best_at + 1].end;
    symbols[best_at].id = best->id;
    symbols.erase(symbols.begin() + static_cast<int64_t>(best_at) + 1);
  }
}

TEST(SymbolMergerTest, AgreesWithTheDefinition) {
  std::mt19937 random(3);
  SymbolMerger merger;
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    for (uint64_t n = random() % 30; n > 0; --n) text.push_back("abc"[random() % 3]);
    const uint64_t seed = random();
    // About half of all short strings are tokens, with few ranks so that there are many ties.
    const auto find_join = [&](const Symbol& left, const Symbol& right) -> std::optional<Join> {
      const std::string joined = text.substr(left.begin, right.end - left.begin);
      const uint64_t hash = std::hash<std::string>()(joined + std::to_string(seed));
      if (joined.size() > 6 || hash % 2 == 0) return std::nullopt;
      return Join{hash / 2 % 8, static_cast<uint32_t>(hash)};
    };
    std::vector<Symbol> merged;
    merger.Merge(Characters(text.size()), find_join, &merged);
    ASSERT_EQ(Shown(text, merged), Shown(text, MergeSlowly(Characters(text.size()), find_join)));
  }
}

TEST(SymbolMergerTest, LooksAtNoMoreThanThreePairsASymbol) {
  for (const uint64_t count : {0, 1, 2, 1000, 100000}) {
    uint64_t looked = 0;
    const auto find_join = [&looked](const Symbol& left, const Symbol& right) -> std::optional<Join> {
      ++looked;
      return Join{right.end - left.begin, 0};
    };
    std::vector<Symbol> merged;
    SymbolMerger().Merge(Characters(count), find_join, &merged);
    EXPECT_EQ(merged.size(), count == 0 ? 0u : 1u);
    EXPECT_LE(looked, 3 * count);
  }
}

}  // namespace
}  // namespace isotherm::text
