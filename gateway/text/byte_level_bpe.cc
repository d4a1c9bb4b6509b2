#include "gateway/text/byte_level_bpe.h"

#include "common/base/status_macros.h"
#include "gateway/text/symbol_merger.h"

namespace isotherm::text {

absl::StatusOr<std::unique_ptr<ByteLevelBpe>> ByteLevelBpe::Create(const Vocabulary& vocabulary,
                                                                   absl::Span<const std::string> pieces) {
  std::unique_ptr<ByteLevelBpe> model(new ByteLevelBpe);
  ISOTHERM_ASSIGN_OR_RETURN(model->pre_tokenizer_, PreTokenizer::Create(vocabulary.pre_tokenizer));
  const bool whole_words = vocabulary.pre_tokenizer == PreTokenizerKind::kLlama3;
  for (uint32_t id = 0; id < pieces.size(); ++id) {
    const std::string& piece = pieces[id];
    if (vocabulary.tokens[id].type != TokenType::kNormal || piece.empty()) continue;
    if (piece.size() == 1) {
      std::optional<uint32_t>& token = model->byte_tokens_[static_cast<uint8_t>(piece[0])];
      if (!token.has_value()) token = id;
    }
    if (whole_words) model->whole_words_.try_emplace(piece, id);
  }
  model->rules_.reserve(vocabulary.merges.size());
  for (uint64_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    const Merge& merge = vocabulary.merges[rank];
    // Plain text never becomes a control token.
    if (vocabulary.tokens[merge.result].type == TokenType::kControl) continue;
    model->rules_.try_emplace(Pair(merge.left, merge.right), Join{rank, merge.result});
  }
  return model;
}

absl::Status ByteLevelBpe::Encode(absl::string_view text, std::vector<uint32_t>* ids) const {
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<absl::string_view> words, pre_tokenizer_->Split(text));
  const auto find_join = [this](const Symbol& left, const Symbol& right) -> std::optional<Join> {
    const auto rule = rules_.find(Pair(left.id, right.id));
    if (rule == rules_.end()) return std::nullopt;
    return rule->second;
  };
  SymbolMerger merger;
  std::vector<Symbol> symbols;
  std::vector<Symbol> merged;
  for (const absl::string_view word : words) {
    if (const auto whole = whole_words_.find(word); whole != whole_words_.end()) {
      ids->push_back(whole->second);
      continue;
    }
    symbols.clear();
    merged.clear();
    for (uint64_t at = 0; at < word.size(); ++at) {
      const std::optional<uint32_t> id = byte_tokens_[static_cast<uint8_t>(word[at])];
      if (id.has_value()) symbols.push_back({at, at + 1, *id});
    }
    merger.Merge(symbols, find_join, &merged);
    for (const Symbol& symbol : merged) ids->push_back(symbol.id);
  }
  return absl::OkStatus();
}

}  // namespace isotherm::text
