#ifndef ISOTHERM_COMMON_GGUF_FILE_H_
#define ISOTHERM_COMMON_GGUF_FILE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace isotherm::gguf {

// Numbering of ggml as of 2024 and later; the older numbers of PowerInfer's files are translated.
// clang-format off
enum class TensorType : uint32_t {
  kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ2_K = 10, kQ3_K = 11, kQ4_K = 12,
  kQ5_K = 13, kQ6_K = 14, kIQ2_XXS = 16, kIQ2_XS = 17, kIQ3_XXS = 18, kIQ1_S = 19, kIQ4_NL = 20, kIQ3_S = 21,
  kIQ2_S = 22, kIQ4_XS = 23, kI8 = 24, kI16 = 25, kI32 = 26, kI64 = 27, kF64 = 28, kIQ1_M = 29, kBF16 = 30,
};
// clang-format on

// "Q8_0", or "type 77" for one this reader does not know.
std::string TensorTypeName(TensorType type);
// Weights in a block and bytes of a block; {0, 0} for unknown types.
struct BlockShape {
  int64_t weights;
  int64_t bytes;
};
BlockShape GetBlockShape(TensorType type);

struct TensorInfo {
  std::string name;
  TensorType type;
  // ggml order: dims[0] varies fastest. Unused dimensions are 1.
  std::array<int64_t, 4> dims;
  int rank;
  // From the start of the file, or of the shard of a split model; offset + bytes lies within it. `bytes` is 0
  // for a type this reader does not know.
  uint64_t offset;
  uint64_t bytes;
  int shard = 0;
};

// A GGUF file (version 2 or 3, or PowerInfer's "PWRI" magic), mapped read-only. Everything a count, offset,
// dimension or string length claims is checked against the file's size before it is used, so that a truncated
// or hostile file is an InvalidArgument that names the file and the place; other versions of the format are
// Unimplemented. Immutable after opening; thread-safe.
//
// The first shard of a split model (NAME-00001-of-00003.gguf) stands for all: the others beside it are opened
// too, and their tensors are found like its own.
//
// A mapping shows the file as it is now. Replace model files by renaming a new one over them: a file
// overwritten in place gives wrong weights (never a read outside of them), and one truncated while it is
// mapped ends the process with SIGBUS.
class File {
 public:
  static absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path);
  // Of bytes that outlive the result; `name` takes the place of the path.
  static absl::StatusOr<std::unique_ptr<File>> Parse(absl::Span<const uint8_t> bytes,
                                                     const std::string& name);
  ~File();

  const std::string& path() const;
  uint32_t version() const;
  bool is_powerinfer() const;
  // Of all shards.
  uint64_t size_bytes() const;

  absl::Span<const TensorInfo> tensors() const;
  // nullptr if absent.
  const TensorInfo* FindTensor(absl::string_view name) const;
  absl::Span<const uint8_t> Data(const TensorInfo& tensor) const;
  // Tells the kernel that these pages are not needed again (a no-op for parsed bytes).
  void ReleasePages(const TensorInfo& tensor) const;
  // Asks the kernel to read these pages ahead.
  void PrefetchPages(const TensorInfo& tensor) const;

  std::vector<std::string> MetadataKeys() const;
  bool Has(absl::string_view key) const;
  // NotFound if absent; InvalidArgument, naming the key and both types, if it is of another type. Integers of
  // every width convert where the value fits.
  absl::StatusOr<std::string> GetString(absl::string_view key) const;
  absl::StatusOr<int64_t> GetInteger(absl::string_view key) const;
  absl::StatusOr<double> GetFloat(absl::string_view key) const;  // integers convert too
  absl::StatusOr<bool> GetBool(absl::string_view key) const;
  absl::StatusOr<std::vector<std::string>> GetStringArray(absl::string_view key) const;
  absl::StatusOr<std::vector<int64_t>> GetIntegerArray(absl::string_view key) const;
  absl::StatusOr<std::vector<float>> GetFloatArray(absl::string_view key) const;
  // Elements of an array of any type.
  absl::StatusOr<int64_t> GetArraySize(absl::string_view key) const;
  // Type and value as they lie in the file, empty if absent; for copying into another file.
  absl::Span<const uint8_t> EncodedValue(absl::string_view key) const;
  // For people: short values in full, arrays as "[32000 strings]".
  std::string DescribeValue(absl::string_view key) const;

  // 32 hexadecimal digits over the header, the tensor table and samples of every tensor's bytes. Fast for
  // files of any size; two files that differ in structure or were quantised differently differ in it.
  std::string StructureDigest() const;

 private:
  struct Impl;
  explicit File(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace isotherm::gguf

#endif  // ISOTHERM_COMMON_GGUF_FILE_H_
