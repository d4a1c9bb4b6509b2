#include "gateway/text/detokenizer.h"

#include "gateway/text/utf8.h"

namespace isotherm::text {

Detokenizer::Detokenizer(const Tokenizer& tokenizer, const DecodeOptions& options)
    : tokenizer_(&tokenizer),
      render_special_(options.render_special),
      strip_space_(tokenizer.vocabulary().add_space_prefix && !options.continuation) {}

std::string Detokenizer::Push(uint32_t id) {
  pending_ += tokenizer_->PieceBytes(id, render_special_);
  if (strip_space_ && !pending_.empty()) {
    if (pending_.front() == ' ') pending_.erase(0, 1);
    strip_space_ = false;
  }
  std::string text;
  MoveCompleteUtf8(&pending_, &text);
  return text;
}

std::string Detokenizer::Flush() {
  if (pending_.empty()) return "";
  pending_.clear();
  return std::string(kReplacementCharacter.data(), kReplacementCharacter.size());
}

}  // namespace isotherm::text
