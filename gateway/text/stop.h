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
  // One step of the Aho-Corasick automaton, whose state is the longest beginning of a stop string that the
  // stream ends with.
  ByteTrie::Node Next(ByteTrie::Node node, char byte) const;

  std::vector<std::string> stops_;
  ByteTrie trie_;
  // By node: its length; the node of its longest proper suffix in the trie; the longest stop string it ends
  // with.
  std::vector<uint64_t> depth_;
  std::vector<ByteTrie::Node> fallback_;
  std::vector<std::optional<uint32_t>> ending_;

  ByteTrie::Node state_ = ByteTrie::kRoot;
  std::string held_;
  // Bytes handed out.
  uint64_t released_ = 0;
  std::optional<Match> match_;
};

}  // namespace isotherm::text

#endif  // ISOTHERM_GATEWAY_TEXT_STOP_H_
