#include "gateway/text/byte_trie.h"

namespace isotherm::text {

void ByteTrie::Insert(absl::string_view key, uint32_t value) {
  Node node = kRoot;
  for (const char byte : key) {
    const auto [edge, added] = edges_.try_emplace(Edge(node, byte), size());
    if (added) values_.push_back(std::nullopt);
    node = edge->second;
  }
  if (!values_[node].has_value()) values_[node] = value;
}

std::optional<ByteTrie::Node> ByteTrie::Child(Node node, char byte) const {
  const auto edge = edges_.find(Edge(node, byte));
  if (edge == edges_.end()) return std::nullopt;
  return edge->second;
}

std::optional<ByteTrie::Match> ByteTrie::LongestPrefix(absl::string_view text) const {
  std::optional<Match> longest;
  std::optional<Node> node = kRoot;
  for (uint64_t length = 0; length < text.size(); ++length) {
    node = Child(*node, text[length]);
    if (!node.has_value()) break;
    if (values_[*node].has_value()) longest = Match{length + 1, *values_[*node]};
  }
  return longest;
}

}  // namespace isotherm::text
