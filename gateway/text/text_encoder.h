#ifndef ISOTHERM_GATEWAY_TEXT_TEXT_ENCODER_H_
#define ISOTHERM_GATEWAY_TEXT_TEXT_ENCODER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm::text {

// Turns text without special tokens into ids: the part of a tokenizer that depends on its model. Thread-safe.
class TextEncoder {
 public:
  virtual ~TextEncoder() = default;

  // Appends the ids of `text`, which is valid UTF-8 and not empty.
  virtual absl::Status Encode(absl::string_view text, std::vector<uint32_t>* ids) const = 0;
};

}  // namespace isotherm::text

#endif  // ISOTHERM_GATEWAY_TEXT_TEXT_ENCODER_H_
