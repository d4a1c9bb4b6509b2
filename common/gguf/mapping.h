#ifndef ISOTHERM_COMMON_GGUF_MAPPING_H_
#define ISOTHERM_COMMON_GGUF_MAPPING_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace isotherm::gguf {

// A regular file mapped read-only; unmapped on destruction. Movable, thread-safe.
class Mapping {
 public:
  // NotFound, PermissionDenied and the like as the system says; InvalidArgument for what is not a regular
  // file with at least one byte.
  static absl::StatusOr<Mapping> Open(const std::string& path);

  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  absl::Span<const uint8_t> bytes() const { return bytes_; }

  // Advice about a part of bytes(); parts of other memory, as of a default-constructed mapping, are ignored.
  // Release drops whole pages from this process and leaves those at the ends, which neighbours share; the
  // system's page cache keeps them for other readers.
  void Release(absl::Span<const uint8_t> part) const;
  void Prefetch(absl::Span<const uint8_t> part) const;

 private:
  explicit Mapping(absl::Span<const uint8_t> bytes) : bytes_(bytes) {}
  bool Contains(absl::Span<const uint8_t> part) const;

  absl::Span<const uint8_t> bytes_;
};

}  // namespace isotherm::gguf

#endif  // ISOTHERM_COMMON_GGUF_MAPPING_H_
