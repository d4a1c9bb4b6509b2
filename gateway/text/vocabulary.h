#ifndef ISOTHERM_GATEWAY_TEXT_VOCABULARY_H_
#define ISOTHERM_GATEWAY_TEXT_VOCABULARY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/gguf/file.h"

namespace isotherm::text {

enum class TokenizerModel {
  kSentencePiece,  // tokenizer.ggml.model = "llama"
  kByteLevelBpe,   // tokenizer.ggml.model = "gpt2"
};

// How byte-level BPE cuts text into the words that merges stay within.
enum class PreTokenizerKind { kGpt2, kFalcon, kLlama3, kQwen2 };

// Numbering of tokenizer.ggml.token_type.
enum class TokenType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,      // <s>: never comes from plain text, never shown as text
  kUserDefined = 4,  // one token wherever its text occurs
  kUnused = 5,
  kByte = 6,  // "<0x0A>": one byte of a character that has no token
};

// The byte that "<0x0A>", the text of a byte token, stands for.
std::optional<uint8_t> ByteOfToken(absl::string_view text);

struct Token {
  std::string text;
  // SentencePiece joins the pair whose result scores highest.
  float score = 0.0F;
  TokenType type = TokenType::kNormal;
};

// Byte-level BPE replaces neighbours (left, right) by result; earlier merges go first.
struct Merge {
  uint32_t left;
  uint32_t right;
  uint32_t result;
};

// What a GGUF file says about tokens and text. Plain data: Tokenizer makes use of it.
struct Vocabulary {
  TokenizerModel model = TokenizerModel::kSentencePiece;
  PreTokenizerKind pre_tokenizer = PreTokenizerKind::kGpt2;
  std::vector<Token> tokens;
  std::vector<Merge> merges;

  std::optional<uint32_t> bos;
  std::optional<uint32_t> eos;
  // Ends a turn of a chat, where that differs from eos: <|eot_id|>, <|im_end|>.
  std::optional<uint32_t> eot;
  std::optional<uint32_t> unknown;
  std::optional<uint32_t> padding;

  // Whether Encode puts bos in front and eos behind when its caller does not say.
  bool add_bos = false;
  bool add_eos = false;
  // SentencePiece only: text is read as though a space stood before it.
  bool add_space_prefix = false;

  // Reads and validates the keys tokenizer.ggml.*. InvalidArgument, naming the key, for missing keys, arrays
  // of different lengths, ids out of range and merges of unknown tokens; Unimplemented, listing what there
  // is, for other values of tokenizer.ggml.model and tokenizer.ggml.pre.
  static absl::StatusOr<Vocabulary> FromFile(const gguf::File& file);

  // What FromFile checks of ids, scores and byte tokens, for a vocabulary made otherwise.
  absl::Status Validate() const;
};

}  // namespace isotherm::text

#endif  // ISOTHERM_GATEWAY_TEXT_VOCABULARY_H_
