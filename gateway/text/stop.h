#ifndef ISOTHERM_GATEWAY_TEXT_STOP_H_
#define ISOTHERM_GATEWAY_TEXT_STOP_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "gateway/text/byte_trie.h"

namespace isotherm::text {

// Finds the first of several stop strings in a stream of text, holding back text that may turn out to be the
// beginning of one. The result does not depend on how the stream is cut: the stop string that is complete
// first wins, and of several that end at the same byte the longest. Empty stop strings are ignored.
//
// Text given in whole characters comes back in whole characters.
class StopMatcher {
 public:
  struct Match {
    // In the constructor's list.
    uint64_t index;
    // Bytes of the stream before the stop string.
    uint64_t position;
  };

  explicit StopMatcher(std::vector<std::string> stops);

  // The text that is now known to lie before any stop string. After a match: nothing.
  std::string Push(absl::string_view text);

  // The end of the stream: the text that was held back.
  std::string Flush();

  const std::optional<Match>& match() const { return match_; }

 private:
  // What a node of the trie stands for: the first `depth` bytes of stop string `stop`.
  struct Prefix {
    uint64_t stop = 0;
    uint64_t depth = 0;
    // The node of its longest proper suffix that begins a stop string.
    ByteTrie::Node fallback = ByteTrie::kRoot;
    // The longest stop string that it ends with.
    std::optional<uint64_t> ending;
  };

  // One step of the Aho-Corasick automaton, whose state is the longest beginning of a stop string that the
  // stream ends with.
  ByteTrie::Node Next(ByteTrie::Node node, char byte) const;
  // What the stream ends with in this state, which is what is held back.
  absl::string_view Held(ByteTrie::Node node) const;
  // The first `length` bytes of what was held back before `text` came, and `text`.
  std::string Release(uint64_t length, ByteTrie::Node before, absl::string_view text);

  std::vector<std::string> stops_;
  ByteTrie trie_;
  std::vector<Prefix> prefixes_;  // by node
  ByteTrie::Node state_ = ByteTrie::kRoot;
  // Bytes handed out.
  uint64_t released_ = 0;
  std::optional<Match> match_;
};

}  // namespace isotherm::text

#endif  // ISOTHERM_GATEWAY_TEXT_STOP_H_
