#ifndef ISOTHERM_GATEWAY_TEXT_BYTE_TRIE_H_
#define ISOTHERM_GATEWAY_TEXT_BYTE_TRIE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace isotherm::text {

// A set of byte strings, each with a value, that can be walked byte by byte.
class ByteTrie {
 public:
  using Node = uint32_t;
  static constexpr Node kRoot = 0;

  struct Match {
    uint64_t length;
    uint32_t value;
  };

  // The first value given to a string stays.
  void Insert(absl::string_view key, uint32_t value);

  bool empty() const { return values_.size() == 1; }
  Node size() const { return static_cast<Node>(values_.size()); }
  std::optional<Node> Child(Node node, char byte) const;
  // Of the string that ends at `node`, if one does.
  std::optional<uint32_t> Value(Node node) const { return values_[node]; }

  // The longest string in the set that `text` begins with.
  std::optional<Match> LongestPrefix(absl::string_view text) const;

 private:
  static uint64_t Edge(Node node, char byte) { return uint64_t{node} << 8 | static_cast<uint8_t>(byte); }

  absl::flat_hash_map<uint64_t, Node> edges_;
  std::vector<std::optional<uint32_t>> values_ = {std::nullopt};
};

}  // namespace isotherm::text

#endif  // ISOTHERM_GATEWAY_TEXT_BYTE_TRIE_H_
