#include "gateway/text/tokenizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/base/status_macros.h"
#include "gateway/text/byte_alphabet.h"
#include "gateway/text/byte_level_bpe.h"
#include "gateway/text/detokenizer.h"
#include "gateway/text/sentencepiece_bpe.h"
#include "gateway/text/utf8.h"

namespace isotherm::text {
namespace {

// The bytes a token stands for; of control and unknown tokens their text.
std::string MakePiece(TokenizerModel model, const Token& token) {
  switch (token.type) {
    case TokenType::kControl:
    case TokenType::kUnknown:
      return token.text;
    case TokenType::kByte:
      return std::string(1, static_cast<char>(*ByteOfToken(token.text)));
    case TokenType::kUserDefined:
    case TokenType::kNormal:
    case TokenType::kUnused:
      break;
  }
  if (model == TokenizerModel::kSentencePiece)
    return absl::StrReplaceAll(token.text, {{kSentencePieceSpace, " "}});
  // Added tokens are written as they are, not in the byte-level alphabet.
  if (token.type == TokenType::kUserDefined) return token.text;
  return BytesOfByteLevelToken(token.text).value_or(token.text);
}

absl::StatusOr<std::unique_ptr<const TextEncoder>> MakeEncoder(const Vocabulary& vocabulary,
                                                               absl::Span<const std::string> pieces) {
  if (vocabulary.model == TokenizerModel::kSentencePiece) return SentencePieceBpe::Create(vocabulary);
  return ByteLevelBpe::Create(vocabulary, pieces);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(Vocabulary vocabulary) {
  ISOTHERM_RETURN_IF_ERROR(vocabulary.Validate());
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(std::move(vocabulary)));
  const std::vector<Token>& tokens = tokenizer->vocabulary_.tokens;
  tokenizer->pieces_.reserve(tokens.size());
  for (uint32_t id = 0; id < tokens.size(); ++id) {
    const TokenType type = tokens[id].type;
    const std::string& piece =
        tokenizer->pieces_.emplace_back(MakePiece(tokenizer->vocabulary_.model, tokens[id]));
    if (piece.empty()) continue;
    if (type == TokenType::kUserDefined) tokenizer->user_defined_.Insert(piece, id);
    if (type == TokenType::kUserDefined || type == TokenType::kControl) {
      tokenizer->user_defined_and_control_.Insert(piece, id);
    }
  }
  ISOTHERM_ASSIGN_OR_RETURN(tokenizer->encoder_, MakeEncoder(tokenizer->vocabulary_, tokenizer->pieces_));
  return tokenizer;
}

absl::StatusOr<std::vector<uint32_t>> Tokenizer::Encode(absl::string_view text,
                                                        const EncodeOptions& options) const {
  const uint64_t valid = ValidUtf8Prefix(text);
  if (valid < text.size()) {
    return absl::InvalidArgumentError(absl::StrCat("text is not UTF-8 at byte ", valid));
  }
  const bool add_bos = options.add_bos.value_or(vocabulary_.add_bos);
  const bool add_eos = options.add_eos.value_or(vocabulary_.add_eos);
  if (add_bos && !bos().has_value())
    return absl::InvalidArgumentError("the model has no beginning-of-text token");
  if (add_eos && !eos().has_value()) return absl::InvalidArgumentError("the model has no end-of-text token");

  std::vector<uint32_t> ids;
  if (add_bos) ids.push_back(*bos());
  ISOTHERM_RETURN_IF_ERROR(
      EncodeSections(text, options.parse_special ? user_defined_and_control_ : user_defined_, &ids));
  if (add_eos) ids.push_back(*eos());
  return ids;
}

absl::Status Tokenizer::EncodeSections(absl::string_view text, const ByteTrie& whole_tokens,
                                       std::vector<uint32_t>* ids) const {
  uint64_t section = 0;
  const auto encode_section = [&](uint64_t end) {
    return section == end ? absl::OkStatus() : encoder_->Encode(text.substr(section, end - section), ids);
  };
  for (uint64_t at = 0; !whole_tokens.empty() && at < text.size();) {
    const std::optional<ByteTrie::Match> match = whole_tokens.LongestPrefix(text.substr(at));
    if (!match.has_value()) {
      ++at;
      continue;
    }
    ISOTHERM_RETURN_IF_ERROR(encode_section(at));
    ids->push_back(match->value);
    at += match->length;
    section = at;
  }
  return encode_section(text.size());
}

std::string Tokenizer::PieceBytes(uint32_t id, bool render_special) const {
  if (id >= pieces_.size()) return "";
  const TokenType type = vocabulary_.tokens[id].type;
  const bool special = type == TokenType::kControl || type == TokenType::kUnknown;
  return special && !render_special ? "" : pieces_[id];
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const uint32_t> ids,
                                              const DecodeOptions& options) const {
  Detokenizer detokenizer(*this, options);
  std::string text;
  for (const uint32_t id : ids) {
    if (id >= pieces_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("no token has the id ", id, "; the vocabulary has ", pieces_.size()));
    }
    text += detokenizer.Push(id);
  }
  return text + detokenizer.Flush();
}

}  // namespace isotherm::text
