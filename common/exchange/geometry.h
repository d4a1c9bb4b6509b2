#ifndef ISOTHERM_COMMON_EXCHANGE_GEOMETRY_H_
#define ISOTHERM_COMMON_EXCHANGE_GEOMETRY_H_

#include <cstdint>

#include "absl/status/status.h"

namespace isotherm::exchange {

// What both sides agree on when they open an exchange; every size follows from it.
struct Geometry {
  int64_t layers = 0;
  int64_t hidden = 0;
  int64_t ffn = 0;
  int64_t max_rows = 0;      // most token rows of one exchange
  bool gate_values = false;  // slots have room for compacted gate activations
  // Inline frames carry x and y as BF16 instead of F32, half the bytes; slots of a region are F32 always.
  bool bf16 = false;

  constexpr int64_t activation_bytes() const { return bf16 ? 2 : 4; }
  // The same for shared memory.
  constexpr Geometry OfRegion() const {
    Geometry region = *this;
    region.bf16 = false;
    return region;
  }

  bool operator==(const Geometry&) const = default;
};

// InvalidArgument naming the first number out of range. A geometry that passes has counts that fit the u32
// fields of a descriptor, and no size derived from it overflows int64_t.
absl::Status CheckGeometry(const Geometry& geometry);

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_GEOMETRY_H_
