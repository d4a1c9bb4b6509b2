#ifndef ISOTHERM_COMMON_GGUF_FORMAT_H_
#define ISOTHERM_COMMON_GGUF_FORMAT_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"

// What reader and writer must agree on.
namespace isotherm::gguf {

inline constexpr absl::string_view kMagic = "GGUF";
inline constexpr absl::string_view kPowerInferMagic = "PWRI";

inline constexpr char kAlignmentKey[] = "general.alignment";
inline constexpr uint64_t kDefaultAlignment = 32;

// The format's limits.
inline constexpr size_t kMostKeyBytes = 65535;
inline constexpr size_t kMostTensorNameBytes = 64;
inline constexpr uint32_t kMostDimensions = 4;

inline constexpr uint64_t AlignUp(uint64_t offset, uint64_t alignment) {
  return (offset + alignment - 1) & ~(alignment - 1);
}

}  // namespace isotherm::gguf

#endif  // ISOTHERM_COMMON_GGUF_FORMAT_H_
