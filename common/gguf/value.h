#ifndef ISOTHERM_COMMON_GGUF_VALUE_H_
#define ISOTHERM_COMMON_GGUF_VALUE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/gguf/cursor.h"

namespace isotherm::gguf {

enum class ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// A metadata value, left encoded where it lies: a vocabulary of 256000 strings costs no memory until it is
// asked for. The decoders check every read again, as the file under a mapping may change after it was parsed.
struct Value {
  ValueType type = ValueType::kUint8;  // of the elements, for an array
  bool is_array = false;
  uint64_t count = 1;
  absl::Span<const uint8_t> payload;
  absl::Span<const uint8_t> encoded;  // all of it, type and count included
};

// Reads type and value and skips the payload. The error says what is wrong and at which byte, without the
// file or the key.
absl::StatusOr<Value> ReadValue(Cursor& cursor);

// "u32", "array of string".
std::string TypeDescription(const Value& value);
// Short values in full, long strings cut, arrays as "[32000 strings]".
std::string Describe(const Value& value);

// InvalidArgument says what the value is instead of the asked-for type.
absl::StatusOr<std::string> DecodeString(const Value& value);
absl::StatusOr<int64_t> DecodeInteger(const Value& value);
absl::StatusOr<double> DecodeFloat(const Value& value);
absl::StatusOr<bool> DecodeBool(const Value& value);
absl::StatusOr<std::vector<std::string>> DecodeStringArray(const Value& value);
absl::StatusOr<std::vector<int64_t>> DecodeIntegerArray(const Value& value);
absl::StatusOr<std::vector<float>> DecodeFloatArray(const Value& value);
absl::StatusOr<int64_t> DecodeArraySize(const Value& value);

// Printable text for messages: control characters and quotes escaped, cut to `limit` bytes between
// characters.
std::string Printable(absl::string_view text, size_t limit = 120);

}  // namespace isotherm::gguf

#endif  // ISOTHERM_COMMON_GGUF_VALUE_H_
