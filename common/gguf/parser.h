#ifndef ISOTHERM_COMMON_GGUF_PARSER_H_
#define ISOTHERM_COMMON_GGUF_PARSER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/gguf/file.h"
#include "common/gguf/value.h"

namespace isotherm::gguf {

// What the bytes before the tensors' data say. Values point into the parsed bytes.
struct Contents {
  uint32_t version = 0;
  bool is_powerinfer = false;
  uint64_t header_bytes = 0;      // magic, counts, metadata and tensor table
  std::vector<std::string> keys;  // in the order of the file
  absl::flat_hash_map<std::string, Value> metadata;
  std::vector<TensorInfo> tensors;
  absl::flat_hash_map<std::string, size_t> tensor_index;
};

// Believes nothing: memory is bounded by a small multiple of bytes.size(), and every tensor of the result
// lies within the bytes. Errors begin with `name`.
absl::StatusOr<Contents> ParseContents(absl::Span<const uint8_t> bytes, const std::string& name);

}  // namespace isotherm::gguf

#endif  // ISOTHERM_COMMON_GGUF_PARSER_H_
