#include "gateway/text/sentencepiece_bpe.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gateway/text/utf8.h"

namespace isotherm::text {
namespace {

bool ComesFromText(TokenType type) { return type == TokenType::kNormal || type == TokenType::kUnused; }

// The tokens of all 256 bytes, or nothing if one is missing.
std::optional<std::array<uint32_t, 256>> FindByteTokens(const std::vector<Token>& tokens) {
  std::array<std::optional<uint32_t>, 256> found;
  for (uint32_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].type != TokenType::kByte) continue;
    std::optional<uint32_t>& token = found[*ByteOfToken(tokens[id].text)];
    if (!token.has_value()) token = id;
  }
  std::array<uint32_t, 256> all{};
  for (uint64_t byte = 0; byte < all.size(); ++byte) {
    if (!found[byte].has_value()) return std::nullopt;
    all[byte] = *found[byte];
  }
  return all;
}

std::optional<uint32_t> FindUnknown(const Vocabulary& vocabulary) {
  if (vocabulary.unknown.has_value()) return vocabulary.unknown;
  const auto token =
      std::find_if(vocabulary.tokens.begin(), vocabulary.tokens.end(),
                   [](const Token& candidate) { return candidate.type == TokenType::kUnknown; });
  if (token == vocabulary.tokens.end()) return std::nullopt;
  return static_cast<uint32_t>(token - vocabulary.tokens.begin());
}

}  // namespace

absl::StatusOr<std::unique_ptr<SentencePieceBpe>> SentencePieceBpe::Create(const Vocabulary& vocabulary) {
  std::unique_ptr<SentencePieceBpe> model(new SentencePieceBpe);
  model->add_space_prefix_ = vocabulary.add_space_prefix;
  const std::optional<std::array<uint32_t, 256>> byte_tokens = FindByteTokens(vocabulary.tokens);
  const std::optional<uint32_t> unknown = FindUnknown(vocabulary);
  if (!byte_tokens.has_value() && !unknown.has_value()) {
    return absl::InvalidArgumentError(
        "tokenizer.ggml.unknown_token_id: missing, and tokenizer.ggml.tokens has not all bytes to do "
        "without");
  }
  model->byte_fallback_ = byte_tokens.has_value();
  if (model->byte_fallback_) model->byte_tokens_ = *byte_tokens;
  model->unknown_ = unknown.value_or(0);
  model->RankPieces(vocabulary);
  return model;
}

void SentencePieceBpe::RankPieces(const Vocabulary& vocabulary) {
  const std::vector<Token>& tokens = vocabulary.tokens;
  std::vector<uint32_t> by_score;
  for (uint32_t id = 0; id < tokens.size(); ++id) {
    if (!ComesFromText(tokens[id].type)) continue;
    const bool unused = tokens[id].type == TokenType::kUnused;
    if (!pieces_.try_emplace(tokens[id].text, Piece{id, 0, unused}).second) continue;
    by_score.push_back(id);
    longest_piece_ = std::max<uint64_t>(longest_piece_, tokens[id].text.size());
  }
  std::stable_sort(by_score.begin(), by_score.end(),
                   [&tokens](uint32_t a, uint32_t b) { return tokens[a].score > tokens[b].score; });
  uint64_t rank = 0;
  for (uint64_t i = 0; i < by_score.size(); ++i) {
    const Token& token = tokens[by_score[i]];
    if (i > 0 && token.score < tokens[by_score[i - 1]].score) ++rank;
    pieces_.find(token.text)->second.rank = rank;
  }
}

std::string SentencePieceBpe::Normalize(absl::string_view text) const {
  return absl::StrCat(add_space_prefix_ ? kSentencePieceSpace : "",
                      absl::StrReplaceAll(text, {{" ", kSentencePieceSpace}}));
}

absl::Status SentencePieceBpe::Encode(absl::string_view text, std::vector<uint32_t>* ids) const {
  const std::string normalized = Normalize(text);
  const absl::string_view view = normalized;
  std::vector<Symbol> characters;
  for (uint64_t at = 0; at < view.size();) {
    const uint64_t length = NextUtf8(view.substr(at)).length;
    characters.push_back({at, at + length, 0});
    at += length;
  }

  Seams seams;
  const auto find_join = [&](const Symbol& left, const Symbol& right) -> std::optional<Join> {
    const absl::string_view joined = view.substr(left.begin, right.end - left.begin);
    // Looking up what is too long anyway would cost its length in hashing.
    if (joined.size() > longest_piece_) return std::nullopt;
    const auto piece = pieces_.find(joined);
    if (piece == pieces_.end()) return std::nullopt;
    if (piece->second.unused) seams.insert_or_assign(joined, left.end - left.begin);
    return Join{piece->second.rank, piece->second.id};
  };
  std::vector<Symbol> merged;
  SymbolMerger().Merge(characters, find_join, &merged);
  // Apart from what is in *ids already, with which an unknown token would fuse.
  std::vector<uint32_t> own;
  for (const Symbol& symbol : merged) {
    AppendIds(view.substr(symbol.begin, symbol.end - symbol.begin), seams, &own);
  }
  ids->insert(ids->end(), own.begin(), own.end());
  return absl::OkStatus();
}

void SentencePieceBpe::AppendIds(absl::string_view symbol, const Seams& seams,
                                 std::vector<uint32_t>* ids) const {
  const auto piece = pieces_.find(symbol);
  if (piece == pieces_.end()) return AppendFallback(symbol, ids);
  const auto seam = piece->second.unused ? seams.find(symbol) : seams.end();
  if (seam == seams.end()) return ids->push_back(piece->second.id);
  AppendIds(symbol.substr(0, seam->second), seams, ids);
  AppendIds(symbol.substr(seam->second), seams, ids);
}

void SentencePieceBpe::AppendFallback(absl::string_view character, std::vector<uint32_t>* ids) const {
  if (byte_fallback_) {
    for (const char byte : character) ids->push_back(byte_tokens_[static_cast<uint8_t>(byte)]);
  } else if (ids->empty() || ids->back() != unknown_) {
    // A run of unknown characters is one unknown token.
    ids->push_back(unknown_);
  }
}

}  // namespace isotherm::text
