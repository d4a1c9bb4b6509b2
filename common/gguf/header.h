#ifndef ISOTHERM_COMMON_GGUF_HEADER_H_
#define ISOTHERM_COMMON_GGUF_HEADER_H_

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/gguf/encode.h"
#include "common/gguf/file.h"

namespace isotherm::gguf {

// Metadata and tensor table of a GGUF file (version 3, alignment 32) that is to be written. Nothing is
// checked until Encode.
class Header {
 public:
  enum class Form { kGguf, kPowerInfer };  // differ in the magic and in the numbers of integer tensor types

  explicit Header(Form form = Form::kGguf) : form_(form) {}

  // Adds a key or replaces its value. The type in the file is exactly T.
  template <typename T>
  requires std::is_arithmetic_v<T>
  void Set(absl::string_view key, T value) { SetEncoded(key, EncodeValue(value)); }
  void Set(absl::string_view key, absl::string_view value) { SetEncoded(key, EncodeValue(value)); }
  // T is arithmetic or std::string.
  template <typename T>
  void SetArray(absl::string_view key, const std::vector<T>& values) {
    SetEncoded(key, EncodeArray(values));
  }
  void Remove(absl::string_view key);
  // Sets every key of a file to the same bytes, in the file's order, but for the keys that say how that file
  // lies on the disk: general.alignment and split.*.
  void CopyMetadata(const File& source);

  // `dims` in ggml's order, the contiguous one first.
  void AddTensor(std::string name, TensorType type, std::vector<int64_t> dims);

  // The bytes before the tensors' data, padded to where it begins.
  struct Encoded {
    std::vector<uint8_t> bytes;
    std::vector<uint64_t> tensor_bytes;  // of each tensor's data, which begins at the next multiple of 32
    uint64_t file_bytes;                 // all of it
  };
  // InvalidArgument, naming the key or tensor, for what no reader would accept: names that are empty, too
  // long or there twice, an unknown type, dimensions below 1, rows that are no whole number of blocks.
  absl::StatusOr<Encoded> Encode() const;

 private:
  struct Metadata {
    std::string key;
    std::vector<uint8_t> encoded;  // type and value
  };
  struct Tensor {
    std::string name;
    TensorType type;
    std::vector<int64_t> dims;
  };

  void SetEncoded(absl::string_view key, std::vector<uint8_t> encoded);
  absl::Status EncodeMetadata(std::vector<uint8_t>& out) const;
  absl::Status EncodeTensors(Encoded& encoded) const;

  const Form form_;
  std::vector<Metadata> metadata_;
  std::vector<Tensor> tensors_;
};

}  // namespace isotherm::gguf

#endif  // ISOTHERM_COMMON_GGUF_HEADER_H_
