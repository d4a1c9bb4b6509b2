#ifndef ISOTHERM_GATEWAY_TEXT_UTF8_H_
#define ISOTHERM_GATEWAY_TEXT_UTF8_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace isotherm::text {

// U+FFFD, which stands for bytes that are not UTF-8.
inline constexpr absl::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// What a byte string begins with, by table 3-7 of the Unicode standard (no surrogates, no overlong forms).
struct Utf8Step {
  enum class Kind {
    kCharacter,
    kInvalid,    // `length` bytes to be replaced by one U+FFFD (the standard's maximal subpart)
    kTruncated,  // the whole string is the beginning of a character
  };
  Kind kind;
  uint64_t length;
  char32_t code_point;  // of a kCharacter
};

// `text` is not empty.
Utf8Step NextUtf8(absl::string_view text);

// The length of the longest prefix that is UTF-8; text.size() if all of it is.
uint64_t ValidUtf8Prefix(absl::string_view text);

// Moves all of *bytes that is decided to the end of *text, with U+FFFD for what is invalid, and leaves in
// *bytes the beginning of a character, at most 3 bytes.
void MoveCompleteUtf8(std::string* bytes, std::string* text);

}  // namespace isotherm::text

#endif  // ISOTHERM_GATEWAY_TEXT_UTF8_H_
