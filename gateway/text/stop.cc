#include "gateway/text/stop.h"

#include <algorithm>
#include <utility>

namespace isotherm::text {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  uint64_t longest = 0;
  for (uint64_t i = 0; i < stops_.size(); ++i) {
    if (!stops_[i].empty()) trie_.Insert(stops_[i], static_cast<uint32_t>(i));
    longest = std::max<uint64_t>(longest, stops_[i].size());
  }
  depth_.assign(trie_.size(), 0);
  fallback_.assign(trie_.size(), ByteTrie::kRoot);
  ending_.assign(trie_.size(), std::nullopt);

  // Level by level: a node's fallback is nearer to the root than the node.
  std::vector<ByteTrie::Node> reached(stops_.size(), ByteTrie::kRoot);
  for (uint64_t level = 0; level < longest; ++level) {
    for (uint64_t i = 0; i < stops_.size(); ++i) {
      if (level >= stops_[i].size()) continue;
      const ByteTrie::Node parent = reached[i];
      const char byte = stops_[i][level];
      const ByteTrie::Node node = *trie_.Child(parent, byte);
      depth_[node] = level + 1;
      fallback_[node] = parent == ByteTrie::kRoot ? ByteTrie::kRoot : Next(fallback_[parent], byte);
      const std::optional<uint32_t> whole = trie_.Value(node);
      ending_[node] = whole.has_value() ? whole : ending_[fallback_[node]];
      reached[i] = node;
    }
  }
}

ByteTrie::Node StopMatcher::Next(ByteTrie::Node node, char byte) const {
  while (true) {
    const std::optional<ByteTrie::Node> child = trie_.Child(node, byte);
    if (child.has_value()) return *child;
    if (node == ByteTrie::kRoot) return ByteTrie::kRoot;
    node = fallback_[node];
  }
}

std::string StopMatcher::Push(absl::string_view text) {
  if (match_.has_value()) return "";
  // The end of the stream's text so far is held_, as long as the automaton's state is deep.
  held_.reserve(held_.size() + text.size());
  for (const char byte : text) {
    held_.push_back(byte);
    state_ = Next(state_, byte);
    if (ending_[state_].has_value()) {
      const std::string& stop = stops_[*ending_[state_]];
      held_.resize(held_.size() - stop.size());
      match_ = Match{*ending_[state_], released_ + held_.size()};
      return std::exchange(held_, "");
    }
  }
  std::string released = held_.substr(0, held_.size() - depth_[state_]);
  held_.erase(0, released.size());
  released_ += released.size();
  return released;
}

std::string StopMatcher::Flush() {
  released_ += held_.size();
  state_ = ByteTrie::kRoot;
  return std::exchange(held_, "");
}

}  // namespace isotherm::text
