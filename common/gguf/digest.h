#ifndef ISOTHERM_COMMON_GGUF_DIGEST_H_
#define ISOTHERM_COMMON_GGUF_DIGEST_H_

#include <cstdint>
#include <string>

#include "absl/types/span.h"

namespace isotherm::gguf {

// FNV-1a with 128 bits: the same on every machine, against accidents and not against forgers.
class Digest {
 public:
  void Update(absl::Span<const uint8_t> bytes);
  // 32 hexadecimal digits.
  std::string Hex() const;

 private:
  __extension__ using Uint128 = unsigned __int128;
  // Offset basis and prime: draft-eastlake-fnv, section 5.
  Uint128 state_ = Uint128{0x6c62272e07bb0142} << 64 | 0x62b821756295c58d;
};

}  // namespace isotherm::gguf

#endif  // ISOTHERM_COMMON_GGUF_DIGEST_H_
