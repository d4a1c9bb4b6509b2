#include "common/gguf/digest.h"

#include "absl/strings/str_format.h"

namespace isotherm::gguf {

void Digest::Update(absl::Span<const uint8_t> bytes) {
  constexpr Uint128 kPrime = Uint128{1} << 88 | 0x13b;
  for (const uint8_t byte : bytes) state_ = (state_ ^ byte) * kPrime;
}

std::string Digest::Hex() const {
  return absl::StrFormat("%016x%016x", static_cast<uint64_t>(state_ >> 64), static_cast<uint64_t>(state_));
}

}  // namespace isotherm::gguf
