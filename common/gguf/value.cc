#include "common/gguf/value.h"

#include <optional>
#include <type_traits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"

namespace isotherm::gguf {
namespace {

// Arrays of numbers up to this length are described in full.
constexpr uint64_t kDescribedElements = 8;

struct TypeTraits {
  const char* name;
  uint64_t bytes;  // 0: of varying length
};

// nullopt for types the format does not define.
std::optional<TypeTraits> GetTraits(ValueType type) {
  switch (type) {
    case ValueType::kUint8:
      return TypeTraits{"u8", 1};
    case ValueType::kInt8:
      return TypeTraits{"i8", 1};
    case ValueType::kUint16:
      return TypeTraits{"u16", 2};
    case ValueType::kInt16:
      return TypeTraits{"i16", 2};
    case ValueType::kUint32:
      return TypeTraits{"u32", 4};
    case ValueType::kInt32:
      return TypeTraits{"i32", 4};
    case ValueType::kFloat32:
      return TypeTraits{"f32", 4};
    case ValueType::kBool:
      return TypeTraits{"bool", 1};
    case ValueType::kString:
      return TypeTraits{"string", 0};
    case ValueType::kArray:
      return TypeTraits{"array", 0};
    case ValueType::kUint64:
      return TypeTraits{"u64", 8};
    case ValueType::kInt64:
      return TypeTraits{"i64", 8};
    case ValueType::kFloat64:
      return TypeTraits{"f64", 8};
  }
  return std::nullopt;
}

absl::Status PastTheEnd(const Cursor& cursor, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat(what, " at byte ", cursor.position(),
                   " reaches past the end of the file; the file is truncated or damaged, fetch it again"));
}

absl::StatusOr<ValueType> ReadType(Cursor& cursor) {
  const uint64_t position = cursor.position();
  const auto raw = cursor.Read<uint32_t>();
  if (!raw) return PastTheEnd(cursor, "its type");
  const auto type = static_cast<ValueType>(*raw);
  if (!GetTraits(type)) {
    return absl::InvalidArgumentError(
        absl::StrCat("value type ", *raw, " at byte ", position,
                     " is not defined; the file is damaged or newer than this reader"));
  }
  return type;
}

template <typename Stored>
std::optional<int64_t> ReadAsInteger(Cursor& cursor) {
  const auto stored = cursor.Read<Stored>();
  if (!stored || !std::in_range<int64_t>(*stored)) return std::nullopt;
  return static_cast<int64_t>(*stored);
}

// nullopt if the type is no integer or the value does not fit.
std::optional<int64_t> ReadInteger(Cursor& cursor, ValueType type) {
  switch (type) {
    case ValueType::kUint8:
      return ReadAsInteger<uint8_t>(cursor);
    case ValueType::kInt8:
      return ReadAsInteger<int8_t>(cursor);
    case ValueType::kUint16:
      return ReadAsInteger<uint16_t>(cursor);
    case ValueType::kInt16:
      return ReadAsInteger<int16_t>(cursor);
    case ValueType::kUint32:
      return ReadAsInteger<uint32_t>(cursor);
    case ValueType::kInt32:
      return ReadAsInteger<int32_t>(cursor);
    case ValueType::kUint64:
      return ReadAsInteger<uint64_t>(cursor);
    case ValueType::kInt64:
      return ReadAsInteger<int64_t>(cursor);
    default:
      return std::nullopt;
  }
}

// nullopt if the type is no number.
std::optional<double> ReadFloat(Cursor& cursor, ValueType type) {
  switch (type) {
    case ValueType::kFloat32:
      return cursor.Read<float>();
    case ValueType::kFloat64:
      return cursor.Read<double>();
    case ValueType::kUint64:
      return cursor.Read<uint64_t>();
    default:
      return ReadInteger(cursor, type);
  }
}

absl::Status WrongType(const Value& value, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat("is ", Describe(value), " of type ", TypeDescription(value),
                                                 " where ", wanted, " is expected"));
}

// Applies `read` to the one value of a scalar.
template <typename Read>
auto DecodeScalar(const Value& value, absl::string_view wanted, const Read& read)
    -> absl::StatusOr<typename std::invoke_result_t<Read, Cursor&>::value_type> {
  if (value.is_array) return WrongType(value, wanted);
  Cursor cursor(value.payload);
  auto result = read(cursor);
  if (!result) return WrongType(value, wanted);
  return *std::move(result);
}

template <typename Element, typename Read>
absl::StatusOr<std::vector<Element>> DecodeArray(const Value& value, absl::string_view wanted,
                                                 const Read& read) {
  if (!value.is_array) return WrongType(value, wanted);
  std::vector<Element> result;
  result.reserve(value.count);  // each element has at least one byte in the payload
  Cursor cursor(value.payload);
  for (uint64_t i = 0; i < value.count; ++i) {
    auto element = read(cursor);
    if (!element) return WrongType(value, wanted);
    result.push_back(static_cast<Element>(*std::move(element)));
  }
  return result;
}

std::optional<absl::string_view> ReadStringOf(Cursor& cursor, ValueType type) {
  if (type != ValueType::kString) return std::nullopt;
  return cursor.ReadString();
}

std::optional<bool> ReadBool(Cursor& cursor, ValueType type) {
  if (type != ValueType::kBool) return std::nullopt;
  const auto byte = cursor.Read<uint8_t>();
  if (!byte || *byte > 1) return std::nullopt;
  return *byte == 1;
}

std::string DescribeElement(Cursor& cursor, ValueType type) {
  switch (type) {
    case ValueType::kString:
      return absl::StrCat("\"", Printable(cursor.ReadString().value_or("")), "\"");
    case ValueType::kBool:
      return cursor.Read<uint8_t>().value_or(0) != 0 ? "true" : "false";
    case ValueType::kUint64:
      return absl::StrCat(cursor.Read<uint64_t>().value_or(0));
    case ValueType::kFloat32:
      return absl::StrCat(cursor.Read<float>().value_or(0));
    case ValueType::kFloat64:
      return absl::StrCat(cursor.Read<double>().value_or(0));
    default:
      return absl::StrCat(ReadInteger(cursor, type).value_or(0));
  }
}

}  // namespace

absl::StatusOr<Value> ReadValue(Cursor& cursor) {
  Value value;
  Cursor encoded = cursor;
  ISOTHERM_ASSIGN_OR_RETURN(value.type, ReadType(cursor));
  if (value.type == ValueType::kArray) {
    value.is_array = true;
    ISOTHERM_ASSIGN_OR_RETURN(value.type, ReadType(cursor));
    if (value.type == ValueType::kArray) {
      return absl::InvalidArgumentError(
          "is an array of arrays, which no known model uses; the file is damaged or newer than this reader");
    }
    const auto count = cursor.Read<uint64_t>();
    if (!count) return PastTheEnd(cursor, "its element count");
    value.count = *count;
  }

  const uint64_t element_bytes = GetTraits(value.type)->bytes;
  const uint64_t least_bytes = element_bytes > 0 ? element_bytes : sizeof(uint64_t);
  if (value.count > cursor.remaining() / least_bytes) {
    return PastTheEnd(
        cursor, absl::StrCat("its value of ", value.count, value.count == 1 ? " element" : " elements"));
  }
  Cursor payload = cursor;
  if (element_bytes > 0) {
    cursor.ReadBytes(value.count * element_bytes);
  } else {
    for (uint64_t i = 0; i < value.count; ++i) {
      if (!cursor.ReadString())
        return PastTheEnd(cursor, absl::StrCat("its string ", i + 1, " of ", value.count));
    }
  }
  value.payload = *payload.ReadBytes(cursor.position() - payload.position());
  value.encoded = *encoded.ReadBytes(cursor.position() - encoded.position());
  return value;
}

std::string TypeDescription(const Value& value) {
  return absl::StrCat(value.is_array ? "array of " : "", GetTraits(value.type)->name);
}

std::string Describe(const Value& value) {
  Cursor cursor(value.payload);
  if (!value.is_array) return DescribeElement(cursor, value.type);
  if (value.type == ValueType::kString || value.count > kDescribedElements) {
    return absl::StrCat("[", value.count, " ", GetTraits(value.type)->name, value.count == 1 ? "]" : "s]");
  }
  std::vector<std::string> elements;
  for (uint64_t i = 0; i < value.count; ++i) elements.push_back(DescribeElement(cursor, value.type));
  return absl::StrCat("[", absl::StrJoin(elements, ", "), "]");
}

absl::StatusOr<std::string> DecodeString(const Value& value) {
  return DecodeScalar(value, "a string", [&](Cursor& cursor) -> std::optional<std::string> {
    const auto view = ReadStringOf(cursor, value.type);
    if (!view) return std::nullopt;
    return std::string(*view);
  });
}

absl::StatusOr<int64_t> DecodeInteger(const Value& value) {
  return DecodeScalar(value, "an integer", [&](Cursor& cursor) { return ReadInteger(cursor, value.type); });
}

absl::StatusOr<double> DecodeFloat(const Value& value) {
  return DecodeScalar(value, "a number", [&](Cursor& cursor) { return ReadFloat(cursor, value.type); });
}

absl::StatusOr<bool> DecodeBool(const Value& value) {
  return DecodeScalar(value, "a bool", [&](Cursor& cursor) { return ReadBool(cursor, value.type); });
}

absl::StatusOr<std::vector<std::string>> DecodeStringArray(const Value& value) {
  return DecodeArray<std::string>(value, "an array of strings",
                                  [&](Cursor& cursor) { return ReadStringOf(cursor, value.type); });
}

absl::StatusOr<std::vector<int64_t>> DecodeIntegerArray(const Value& value) {
  return DecodeArray<int64_t>(value, "an array of integers",
                              [&](Cursor& cursor) { return ReadInteger(cursor, value.type); });
}

absl::StatusOr<std::vector<float>> DecodeFloatArray(const Value& value) {
  return DecodeArray<float>(value, "an array of numbers",
                            [&](Cursor& cursor) { return ReadFloat(cursor, value.type); });
}

absl::StatusOr<int64_t> DecodeArraySize(const Value& value) {
  if (!value.is_array) return WrongType(value, "an array");
  return static_cast<int64_t>(value.count);
}

std::string Printable(absl::string_view text, size_t limit) {
  if (text.size() <= limit) return absl::Utf8SafeCHexEscape(text);
  size_t end = limit;
  while (end > 0 && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80) --end;  // not inside a UTF-8 character
  return absl::StrCat(absl::Utf8SafeCHexEscape(text.substr(0, end)), "... (", text.size(), " bytes)");
}

}  // namespace isotherm::gguf
