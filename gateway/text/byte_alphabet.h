#ifndef ISOTHERM_GATEWAY_TEXT_BYTE_ALPHABET_H_
#define ISOTHERM_GATEWAY_TEXT_BYTE_ALPHABET_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace isotherm::text {

// The bytes that a token of byte-level BPE spells. GPT-2 writes each byte as a visible character: the
// printable ones of Latin-1 as themselves, the other 68 in order as U+0100 to U+0143. Nothing if `token` has
// any other character.
std::optional<std::string> BytesOfByteLevelToken(absl::string_view token);

}  // namespace isotherm::text

#endif  // ISOTHERM_GATEWAY_TEXT_BYTE_ALPHABET_H_
