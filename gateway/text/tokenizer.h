#ifndef ISOTHERM_GATEWAY_TEXT_TOKENIZER_H_
#define ISOTHERM_GATEWAY_TEXT_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "gateway/text/byte_trie.h"
#include "gateway/text/text_encoder.h"
#include "gateway/text/vocabulary.h"

namespace isotherm::text {

struct EncodeOptions {
  // Unset: as the model file asks.
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  // Whether "<s>" in the text is the control token (a rendered chat template) or five characters (a user's
  // text).
  bool parse_special = false;
};

struct DecodeOptions {
  // Whether control tokens show as their text or not at all.
  bool render_special = false;
  // The ids go on after earlier text, so a leading space of the first one is part of the text.
  bool continuation = false;
};

// Text to tokens and back, the same tokens as the Hugging Face tokenizer of the model gives.
// Immutable, thread-safe.
class Tokenizer {
 public:
  // InvalidArgument for a vocabulary that Validate refuses or that its tokenizer model cannot work with.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(Vocabulary vocabulary);

  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // `text` is UTF-8: InvalidArgument with the byte offset where it is not. Time is O(n log n) whatever the
  // text. Bytes that the vocabulary has no token for yield none, as in Hugging Face's byte-level BPE.
  absl::StatusOr<std::vector<uint32_t>> Encode(absl::string_view text,
                                               const EncodeOptions& options = {}) const;

  // The bytes a token stands for, which may be part of a character. Empty for an id outside the vocabulary
  // and, unless `render_special`, for control and unknown tokens.
  std::string PieceBytes(uint32_t id, bool render_special = false) const;

  // UTF-8 with U+FFFD for bytes that are none. InvalidArgument for an id outside the vocabulary.
  absl::StatusOr<std::string> Decode(absl::Span<const uint32_t> ids, const DecodeOptions& options = {}) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  int64_t vocabulary_size() const { return static_cast<int64_t>(vocabulary_.tokens.size()); }
  std::optional<uint32_t> bos() const { return vocabulary_.bos; }
  std::optional<uint32_t> eos() const { return vocabulary_.eos; }
  // Whether generation ends here: end of text or end of a turn.
  bool IsEndOfSequence(uint32_t id) const { return id == vocabulary_.eos || id == vocabulary_.eot; }

 private:
  explicit Tokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}

  // Text between whole tokens is encoded on its own; SentencePiece puts a space before each such section.
  absl::Status EncodeSections(absl::string_view text, const ByteTrie& whole_tokens,
                              std::vector<uint32_t>* ids) const;

  Vocabulary vocabulary_;
  std::unique_ptr<const TextEncoder> encoder_;
  // By id; control and unknown tokens have their text.
  std::vector<std::string> pieces_;
  // Tokens that stand for their text as a whole; values are ids.
  ByteTrie user_defined_;
  ByteTrie user_defined_and_control_;
};

}  // namespace isotherm::text

#endif  // ISOTHERM_GATEWAY_TEXT_TOKENIZER_H_
