#include "gateway/text/utf8.h"

namespace isotherm::text {
namespace {

// What a first byte demands of the rest: total length, the range of the second byte, and its own payload
// bits.
struct Lead {
  uint64_t length;
  uint8_t second_least;
  uint8_t second_most;
  uint8_t payload;
};

// Length 0: no character begins with this byte.
Lead ClassifyLead(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0, byte};
  if (byte < 0xC2) return {0, 0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF, static_cast<uint8_t>(byte & 0x1F)};
  if (byte < 0xF0) {
    const uint8_t least = byte == 0xE0 ? 0xA0 : 0x80;  // shorter forms exist below U+0800
    const uint8_t most = byte == 0xED ? 0x9F : 0xBF;   // U+D800 to U+DFFF are surrogates
    return {3, least, most, static_cast<uint8_t>(byte & 0x0F)};
  }
  if (byte < 0xF5) {
    const uint8_t least = byte == 0xF0 ? 0x90 : 0x80;  // shorter forms exist below U+10000
    const uint8_t most = byte == 0xF4 ? 0x8F : 0xBF;   // U+10FFFF is the last character
    return {4, least, most, static_cast<uint8_t>(byte & 0x07)};
  }
  return {0, 0, 0, 0};
}

}  // namespace

Utf8Step NextUtf8(absl::string_view text) {
  using Kind = Utf8Step::Kind;
  const Lead lead = ClassifyLead(static_cast<uint8_t>(text[0]));
  if (lead.length == 0) return {Kind::kInvalid, 1, 0};
  char32_t code_point = lead.payload;
  for (uint64_t i = 1; i < lead.length; ++i) {
    if (i == text.size()) return {Kind::kTruncated, i, 0};
    const auto byte = static_cast<uint8_t>(text[i]);
    const uint8_t least = i == 1 ? lead.second_least : 0x80;
    const uint8_t most = i == 1 ? lead.second_most : 0xBF;
    if (byte < least || byte > most) return {Kind::kInvalid, i, 0};
    code_point = code_point << 6 | (byte & 0x3F);
  }
  return {Kind::kCharacter, lead.length, code_point};
}

uint64_t ValidUtf8Prefix(absl::string_view text) {
  uint64_t valid = 0;
  while (valid < text.size()) {
    const Utf8Step step = NextUtf8(text.substr(valid));
    if (step.kind != Utf8Step::Kind::kCharacter) break;
    valid += step.length;
  }
  return valid;
}

void MoveCompleteUtf8(std::string* bytes, std::string* text) {
  absl::string_view rest = *bytes;
  while (!rest.empty()) {
    const Utf8Step step = NextUtf8(rest);
    if (step.kind == Utf8Step::Kind::kTruncated) break;
    const absl::string_view character =
        step.kind == Utf8Step::Kind::kCharacter ? rest.substr(0, step.length) : kReplacementCharacter;
    text->append(character.data(), character.size());
    rest.remove_prefix(step.length);
  }
  bytes->erase(0, bytes->size() - rest.size());
}

}  // namespace isotherm::text
