#ifndef ISOTHERM_GATEWAY_TEXT_PRE_TOKENIZER_H_
#define ISOTHERM_GATEWAY_TEXT_PRE_TOKENIZER_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "gateway/text/vocabulary.h"

namespace isotherm::text {

// Cuts text into the words that byte-level BPE encodes one by one. Thread-safe.
class PreTokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> Create(PreTokenizerKind kind);
  ~PreTokenizer();

  // Words that, joined, are `text` (valid UTF-8); they point into it. A word may end within a character.
  absl::StatusOr<std::vector<absl::string_view>> Split(absl::string_view text) const;

 private:
  class Pattern;

  PreTokenizer();
  absl::StatusOr<std::vector<absl::string_view>> SplitFalcon(absl::string_view text) const;

  PreTokenizerKind kind_;
  std::unique_ptr<Pattern> words_;
  // Falcon only: runs of punctuation and of anything else.
  std::unique_ptr<Pattern> punctuation_;
};

}  // namespace isotherm::text

#endif  // ISOTHERM_GATEWAY_TEXT_PRE_TOKENIZER_H_
