#ifndef ISOTHERM_GATEWAY_TEXT_SENTENCEPIECE_BPE_H_
#define ISOTHERM_GATEWAY_TEXT_SENTENCEPIECE_BPE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "gateway/text/symbol_merger.h"
#include "gateway/text/text_encoder.h"
#include "gateway/text/vocabulary.h"

namespace isotherm::text {

// U+2581, which stands for a space inside tokens.
inline constexpr char kSentencePieceSpace[] = "\xE2\x96\x81";

// Llama's tokenizer: SentencePiece's BPE model with the identity normaliser and byte fallback. The text
// starts as its characters; of all neighbours that make a token those with the best score are joined first.
//
// Not the SentencePiece library itself: the distributions build it with a copy of protobuf 3.14 whose symbols
// it exports, so that it and gRPC's protobuf cannot be in one process. A test compares this with the library.
class SentencePieceBpe final : public TextEncoder {
 public:
  // InvalidArgument for a vocabulary that cannot express every text: neither all bytes nor an unknown token.
  static absl::StatusOr<std::unique_ptr<SentencePieceBpe>> Create(const Vocabulary& vocabulary);

  absl::Status Encode(absl::string_view text, std::vector<uint32_t>* ids) const override;

 private:
  struct Piece {
    uint32_t id;
    // Place in the order of scores, the best first; the same for equal scores.
    uint64_t rank;
    // May be joined into larger pieces, but is taken apart again if it remains.
    bool unused;
  };
  // By the text of an unused piece: the length of the left one of the two it was made of.
  using Seams = absl::flat_hash_map<absl::string_view, uint64_t>;

  SentencePieceBpe() = default;
  std::string Normalize(absl::string_view text) const;
  // Of pieces with the same text the first counts.
  void RankPieces(const Vocabulary& vocabulary);
  void AppendIds(absl::string_view symbol, const Seams& seams, std::vector<uint32_t>* ids) const;
  // Of a character without a piece.
  void AppendFallback(absl::string_view character, std::vector<uint32_t>* ids) const;

  bool add_space_prefix_ = false;
  absl::flat_hash_map<std::string, Piece> pieces_;
  uint64_t longest_piece_ = 0;
  // All or none.
  bool byte_fallback_ = false;
  std::array<uint32_t, 256> byte_tokens_{};
  uint32_t unknown_ = 0;
};

}  // namespace isotherm::text

#endif  // ISOTHERM_GATEWAY_TEXT_SENTENCEPIECE_BPE_H_
