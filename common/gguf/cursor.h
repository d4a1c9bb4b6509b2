#ifndef ISOTHERM_COMMON_GGUF_CURSOR_H_
#define ISOTHERM_COMMON_GGUF_CURSOR_H_

#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace isotherm::gguf {

// The format is little-endian and values are copied as they lie.
static_assert(std::endian::native == std::endian::little);

// Reads values from untrusted bytes, which must outlive it. A read that the remaining bytes cannot satisfy
// returns nullopt and does not move.
class Cursor {
 public:
  explicit Cursor(absl::Span<const uint8_t> bytes) : bytes_(bytes) {}

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return bytes_.size() - position_; }

  template <typename T>
  std::optional<T> Read() {
    static_assert(std::is_arithmetic_v<T>);
    if (remaining() < sizeof(T)) return std::nullopt;
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  std::optional<absl::Span<const uint8_t>> ReadBytes(uint64_t count) {
    if (remaining() < count) return std::nullopt;
    const auto result = bytes_.subspan(position_, count);
    position_ += count;
    return result;
  }

  // A u64 length and that many bytes.
  std::optional<absl::string_view> ReadString() {
    const uint64_t start = position_;
    if (const auto length = Read<uint64_t>()) {
      if (const auto bytes = ReadBytes(*length)) {
        return absl::string_view(reinterpret_cast<const char*>(bytes->data()), bytes->size());
      }
    }
    position_ = start;
    return std::nullopt;
  }

 private:
  absl::Span<const uint8_t> bytes_;
  uint64_t position_ = 0;
};

}  // namespace isotherm::gguf

#endif  // ISOTHERM_COMMON_GGUF_CURSOR_H_
