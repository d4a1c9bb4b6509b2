#include "gateway/text/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "gateway/text/utf8.h"

namespace isotherm::text {
namespace {

constexpr int kNotInAlphabet = -1;
constexpr char32_t kAlphabetEnd = 0x144;

constexpr bool StandsForItself(char32_t byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

// By code point: the byte, or kNotInAlphabet.
constexpr std::array<int, kAlphabetEnd> MakeByteTable() {
  std::array<int, kAlphabetEnd> table{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 0x100; ++byte) {
    if (StandsForItself(byte)) {
      table[byte] = static_cast<int>(byte);
    } else {
      table[byte] = kNotInAlphabet;
      table[next++] = static_cast<int>(byte);
    }
  }
  return table;
}

constexpr std::array<int, kAlphabetEnd> kByteTable = MakeByteTable();

}  // namespace

std::optional<std::string> BytesOfByteLevelToken(absl::string_view token) {
  std::string bytes;
  while (!token.empty()) {
    const Utf8Step step = NextUtf8(token);
    if (step.kind != Utf8Step::Kind::kCharacter || step.code_point >= kAlphabetEnd) return std::nullopt;
    const int byte = kByteTable[step.code_point];
    if (byte == kNotInAlphabet) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    token.remove_prefix(step.length);
  }
  return bytes;
}

}  // namespace isotherm::text
