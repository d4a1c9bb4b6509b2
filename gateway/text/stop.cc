#include "gateway/text/stop.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace isotherm::text {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  uint64_t longest = 0;
  for (uint64_t i = 0; i < stops_.size(); ++i) {
    if (!stops_[i].empty()) trie_.Insert(stops_[i], static_cast<uint32_t>(i));
    longest = std::max<uint64_t>(longest, stops_[i].size());
  }
  prefixes_.resize(trie_.size());

  // Level by level: a node's fallback is nearer to the root than the node.
  std::vector<ByteTrie::Node> reached(stops_.size(), ByteTrie::kRoot);
  for (uint64_t level = 0; level < longest; ++level) {
    for (uint64_t i = 0; i < stops_.size(); ++i) {
      if (level >= stops_[i].size()) continue;
      const ByteTrie::Node parent = reached[i];
      const char byte = stops_[i][level];
      const ByteTrie::Node node = *trie_.Child(parent, byte);
      const ByteTrie::Node fallback =
          parent == ByteTrie::kRoot ? ByteTrie::kRoot : Next(prefixes_[parent].fallback, byte);
      std::optional<uint64_t> ending = prefixes_[fallback].ending;
      if (const std::optional<uint32_t> whole = trie_.Value(node); whole.has_value()) ending = *whole;
      prefixes_[node] = {i, level + 1, fallback, ending};
      reached[i] = node;
    }
  }
}

ByteTrie::Node StopMatcher::Next(ByteTrie::Node node, char byte) const {
  while (true) {
    const std::optional<ByteTrie::Node> child = trie_.Child(node, byte);
    if (child.has_value()) return *child;
    if (node == ByteTrie::kRoot) return ByteTrie::kRoot;
    node = prefixes_[node].fallback;
  }
}

absl::string_view StopMatcher::Held(ByteTrie::Node node) const {
  // The root stands for nothing, also where there are no stop strings.
  if (node == ByteTrie::kRoot) return "";
  return absl::string_view(stops_[prefixes_[node].stop]).substr(0, prefixes_[node].depth);
}

std::string StopMatcher::Release(uint64_t length, ByteTrie::Node before, absl::string_view text) {
  released_ += length;
  const absl::string_view held = Held(before).substr(0, length);
  return absl::StrCat(held, text.substr(0, length - held.size()));
}

std::string StopMatcher::Push(absl::string_view text) {
  if (match_.has_value()) return "";
  const ByteTrie::Node before = state_;
  for (uint64_t at = 0; at < text.size(); ++at) {
    state_ = Next(state_, text[at]);
    const std::optional<uint64_t>& ending = prefixes_[state_].ending;
    if (!ending.has_value()) continue;
    std::string released = Release(Held(before).size() + at + 1 - stops_[*ending].size(), before, text);
    match_ = Match{*ending, released_};
    state_ = ByteTrie::kRoot;
    return released;
  }
  return Release(Held(before).size() + text.size() - Held(state_).size(), before, text);
}

std::string StopMatcher::Flush() {
  const ByteTrie::Node before = std::exchange(state_, ByteTrie::kRoot);
  return Release(Held(before).size(), before, "");
}

}  // namespace isotherm::text
