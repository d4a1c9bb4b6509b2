#ifndef ISOTHERM_COMMON_GGUF_ENCODE_H_
#define ISOTHERM_COMMON_GGUF_ENCODE_H_

#include <cstdint>
#include <type_traits>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/gguf/value.h"

// The counterpart of cursor.h: values as the format stores them, appended to bytes.
namespace isotherm::gguf {

inline void Append(std::vector<uint8_t>& out, absl::Span<const uint8_t> bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

template <typename T>
requires std::is_arithmetic_v<T>
void Append(std::vector<uint8_t>& out, T value) {
  Append(out, absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(&value), sizeof(value)));
}

// A u64 length and the characters.
inline void Append(std::vector<uint8_t>& out, absl::string_view text) {
  Append<uint64_t>(out, text.size());
  Append(out, absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
}

template <typename T>
constexpr ValueType ValueTypeOf() {
  if constexpr (!std::is_arithmetic_v<T>) {
    return ValueType::kString;
  } else if constexpr (std::is_same_v<T, bool>) {
    return ValueType::kBool;
  } else if constexpr (std::is_floating_point_v<T>) {
    return sizeof(T) == 4 ? ValueType::kFloat32 : ValueType::kFloat64;
  } else if constexpr (sizeof(T) == 1) {
    return std::is_signed_v<T> ? ValueType::kInt8 : ValueType::kUint8;
  } else if constexpr (sizeof(T) == 2) {
    return std::is_signed_v<T> ? ValueType::kInt16 : ValueType::kUint16;
  } else if constexpr (sizeof(T) == 4) {
    return std::is_signed_v<T> ? ValueType::kInt32 : ValueType::kUint32;
  } else {
    return std::is_signed_v<T> ? ValueType::kInt64 : ValueType::kUint64;
  }
}

// Type and value of a metadata key; T is arithmetic or a string.
template <typename T>
std::vector<uint8_t> EncodeValue(const T& value) {
  std::vector<uint8_t> out;
  Append(out, static_cast<uint32_t>(ValueTypeOf<T>()));
  Append(out, value);
  return out;
}

template <typename T>
std::vector<uint8_t> EncodeArray(const std::vector<T>& values) {
  std::vector<uint8_t> out;
  Append(out, static_cast<uint32_t>(ValueType::kArray));
  Append(out, static_cast<uint32_t>(ValueTypeOf<T>()));
  Append<uint64_t>(out, values.size());
  for (const T& value : values) Append(out, value);
  return out;
}

}  // namespace isotherm::gguf

#endif  // ISOTHERM_COMMON_GGUF_ENCODE_H_
