#ifndef ISOTHERM_COMMON_GGUF_WRITER_H_
#define ISOTHERM_COMMON_GGUF_WRITER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/gguf/header.h"

namespace isotherm::gguf {

// Writes a GGUF file from front to back with bounded memory. The bytes go into a file of another name beside
// it, which takes the final name, over a file that has it already, only when all of them are on the disk:
// there is never half a file under the final name. Thread-compatible.
//
// Errors name the path and say what to do. ResourceExhausted: the disk is full or a quota or size limit is
// reached; room for the whole file is asked for at the start where the file system can reserve it.
class Writer {
 public:
  // Writes the header. Refuses a path that is taken by something other than a regular file.
  static absl::StatusOr<std::unique_ptr<Writer>> Create(const std::string& path, const Header& header);
  // Removes what was written unless it was committed.
  ~Writer();
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  // The next bytes of the tensors' data, in the order of the header. A call may hold a part of one tensor,
  // never parts of two. FailedPrecondition for more bytes than the tensor has.
  absl::Status Append(absl::Span<const uint8_t> data);
  // Makes it durable and gives it its name. FailedPrecondition if data is missing.
  absl::Status Commit();

 private:
  struct Impl;
  explicit Writer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace isotherm::gguf

#endif  // ISOTHERM_COMMON_GGUF_WRITER_H_
