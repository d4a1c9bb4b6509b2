#ifndef ISOTHERM_TESTS_GATEWAY_TEXT_SENTENCEPIECE_ORACLE_H_
#define ISOTHERM_TESTS_GATEWAY_TEXT_SENTENCEPIECE_ORACLE_H_

#include <memory>
#include <string>
#include <vector>

namespace isotherm::text {

// The SentencePiece library, for comparison. In standard types only: the library's header declares
// std::string_view in namespace absl, where Abseil may have a class of that name. A process that has this has
// no other protobuf in it; see gateway/text/sentencepiece_bpe.h.
class SentencePieceOracle {
 public:
  struct Piece {
    std::string text;
    float score;
    int type;  // as TokenType
  };

  // Aborts if the library refuses the pieces.
  SentencePieceOracle(const std::vector<Piece>& pieces, bool byte_fallback, bool add_space_prefix);
  ~SentencePieceOracle();

  std::vector<int> Encode(const std::string& text) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace isotherm::text

#endif  // ISOTHERM_TESTS_GATEWAY_TEXT_SENTENCEPIECE_ORACLE_H_
