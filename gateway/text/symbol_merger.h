#ifndef ISOTHERM_GATEWAY_TEXT_SYMBOL_MERGER_H_
#define ISOTHERM_GATEWAY_TEXT_SYMBOL_MERGER_H_

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace isotherm::text {

// A part of the text that is becoming tokens.
struct Symbol {
  // Bytes of the text.
  uint64_t begin;
  uint64_t end;
  // For the one who joins; the merger does not look at it.
  uint32_t id;
};

// What two neighbours become. The lowest rank goes first.
struct Join {
  uint64_t rank;
  uint32_t id;
};

// The loop at the heart of byte-pair encoding: neighbours are joined, the lowest rank first and the leftmost
// among equals, until no two can be. O(n log n), because each join removes a symbol and offers at most two
// new pairs to the heap. Kept between words for its memory.
class SymbolMerger {
 public:
  // `find_join(left, right)` is a std::optional<Join>. What is left of `symbols` is appended to *merged.
  template <typename FindJoin>
  void Merge(const std::vector<Symbol>& symbols, const FindJoin& find_join, std::vector<Symbol>* merged) {
    links_.clear();
    heap_.clear();
    const auto count = static_cast<int64_t>(symbols.size());
    for (int64_t at = 0; at < count; ++at) {
      links_.push_back({symbols[at], false, at - 1, at + 1 < count ? at + 1 : kNone});
    }
    for (int64_t at = 0; at < count; ++at) Offer(at, find_join);
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), GoesLater);
      const Offered offered = heap_.back();
      heap_.pop_back();
      if (StillStands(offered)) Apply(offered, find_join);
    }
    for (int64_t at = count == 0 ? kNone : 0; at != kNone; at = links_[at].next)
      merged->push_back(links_[at].symbol);
  }

 private:
  static constexpr int64_t kNone = -1;

  struct Link {
    Symbol symbol;
    // Has become part of its left neighbour.
    bool absorbed;
    int64_t previous;
    int64_t next;
  };

  struct Offered {
    Join join;
    int64_t at;
    // Where the joined symbol would end. It begins where it began, so this says whether the pair is still the
    // same.
    uint64_t end;
  };

  static bool GoesLater(const Offered& a, const Offered& b) {
    return std::tie(a.join.rank, a.at) > std::tie(b.join.rank, b.at);
  }

  template <typename FindJoin>
  void Offer(int64_t at, const FindJoin& find_join) {
    if (at == kNone || links_[at].next == kNone) return;
    const Symbol& right = links_[links_[at].next].symbol;
    const std::optional<Join> join = find_join(links_[at].symbol, right);
    if (!join.has_value()) return;
    heap_.push_back({*join, at, right.end});
    std::push_heap(heap_.begin(), heap_.end(), GoesLater);
  }

  bool StillStands(const Offered& offered) const {
    const Link& left = links_[offered.at];
    return !left.absorbed && left.next != kNone && links_[left.next].symbol.end == offered.end;
  }

  template <typename FindJoin>
  void Apply(const Offered& offered, const FindJoin& find_join) {
    Link& left = links_[offered.at];
    Link& right = links_[left.next];
    left.symbol.end = offered.end;
    left.symbol.id = offered.join.id;
    left.next = right.next;
    right.absorbed = true;
    if (left.next != kNone) links_[left.next].previous = offered.at;
    Offer(left.previous, find_join);
    Offer(offered.at, find_join);
  }

  std::vector<Link> links_;
  std::vector<Offered> heap_;
};

}  // namespace isotherm::text

#endif  // ISOTHERM_GATEWAY_TEXT_SYMBOL_MERGER_H_
