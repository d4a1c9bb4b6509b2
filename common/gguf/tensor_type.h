#ifndef ISOTHERM_COMMON_GGUF_TENSOR_TYPE_H_
#define ISOTHERM_COMMON_GGUF_TENSOR_TYPE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/gguf/file.h"

// What files say about tensor types, beyond the names and blocks that everybody may ask for (file.h).
namespace isotherm::gguf {

// PowerInfer's ggml is from before the IQ types, which took over the numbers of its integers.
TensorType TypeOfNumber(uint32_t number, bool powerinfer);
uint32_t TypeNumber(TensorType type, bool powerinfer);

// Bytes of a tensor's data, 0 for unknown types. InvalidArgument says, without the tensor's name, what is
// wrong: a number of dimensions other than 1 to 4, one below 1, rows that are no whole number of blocks, more
// than 64 bits can count.
absl::StatusOr<uint64_t> TensorBytes(TensorType type, absl::Span<const int64_t> dims);

}  // namespace isotherm::gguf

#endif  // ISOTHERM_COMMON_GGUF_TENSOR_TYPE_H_
