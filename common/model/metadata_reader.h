#ifndef ISOTHERM_COMMON_MODEL_METADATA_READER_H_
#define ISOTHERM_COMMON_MODEL_METADATA_READER_H_

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/gguf/file.h"

namespace isotherm::model {

// Hyperparameters from a file's metadata with their ranges checked. Keys that begin with a dot are the
// architecture's:
// ".block_count" is "llama.block_count". Every error names the file, the key, the value and what is allowed.
class MetadataReader {
 public:
  // The file outlives it.
  MetadataReader(const gguf::File& file, std::string architecture)
      : file_(file), architecture_(std::move(architecture)) {}

  const gguf::File& file() const { return file_; }
  bool Has(absl::string_view key) const { return file_.Has(FullKey(key)); }

  // From `least` to `most`; an absent key is InvalidArgument.
  absl::StatusOr<int64_t> Integer(absl::string_view key, int64_t least, int64_t most) const;
  absl::StatusOr<int64_t> IntegerOr(absl::string_view key, int64_t least, int64_t most,
                                    int64_t fallback) const;
  absl::StatusOr<float> Float(absl::string_view key, double least, double most) const;
  absl::StatusOr<float> FloatOr(absl::string_view key, double least, double most, double fallback) const;
  absl::StatusOr<std::string> String(absl::string_view key) const;
  absl::StatusOr<std::string> StringOr(absl::string_view key, absl::string_view fallback) const;

  // "FILE: metadata key 'llama.block_count' WHAT".
  std::string Message(absl::string_view key, absl::string_view what) const;

 private:
  absl::Status CheckPresent(absl::string_view key) const;
  std::string FullKey(absl::string_view key) const;

  const gguf::File& file_;
  const std::string architecture_;
};

}  // namespace isotherm::model

#endif  // ISOTHERM_COMMON_MODEL_METADATA_READER_H_
