#ifndef ISOTHERM_GATEWAY_TEXT_DETOKENIZER_H_
#define ISOTHERM_GATEWAY_TEXT_DETOKENIZER_H_

#include <cstdint>
#include <string>

#include "gateway/text/tokenizer.h"

namespace isotherm::text {

// Tokens to text as they come. What Push and Flush return is valid UTF-8 and, joined, equals
// Tokenizer::Decode of the same ids with the same options. Copyable, so that a sequence can be rebuilt from a
// snapshot.
class Detokenizer {
 public:
  // `tokenizer` outlives this.
  explicit Detokenizer(const Tokenizer& tokenizer, const DecodeOptions& options = {});

  // The text that is complete with this token; what may still become a character is held back (at most 3
  // bytes). An id outside the vocabulary has no text.
  std::string Push(uint32_t id);

  // Ends the text: U+FFFD for a character that was not completed. Push may follow and begins a new character.
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  bool render_special_;
  // The next text begins with the space that the tokenizer put before it.
  bool strip_space_;
  // The beginning of a character.
  std::string pending_;
};

}  // namespace isotherm::text

#endif  // ISOTHERM_GATEWAY_TEXT_DETOKENIZER_H_
