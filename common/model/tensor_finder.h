#ifndef ISOTHERM_COMMON_MODEL_TENSOR_FINDER_H_
#define ISOTHERM_COMMON_MODEL_TENSOR_FINDER_H_

#include <cstdint>
#include <string>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/gguf/file.h"
#include "common/model/model.h"

namespace isotherm::model {

// Finds a model's tensors by name and checks type and shape. Every error names the file and the tensor:
// InvalidArgument for one that is missing or of the wrong shape, Unimplemented for a type that is not
// supported.
class TensorFinder {
 public:
  // The file outlives it.
  explicit TensorFinder(const gguf::File& file) : file_(file) {}

  bool Has(absl::string_view name) const { return file_.FindTensor(name) != nullptr; }

  // [rows, columns] of any weight type.
  absl::StatusOr<TensorRef> Matrix(absl::string_view name, int64_t rows, int64_t columns);
  // [any number of rows up to `most_rows`, columns].
  absl::StatusOr<TensorRef> MatrixOfColumns(absl::string_view name, int64_t most_rows, int64_t columns);
  // F32 or F16.
  absl::StatusOr<TensorRef> Vector(absl::string_view name, int64_t columns);
  // Like Vector; absent where the file has none.
  absl::StatusOr<TensorRef> VectorIfPresent(absl::string_view name, int64_t columns);
  absl::StatusOr<TensorRef> F32Vector(absl::string_view name, int64_t columns);

  // Unimplemented, naming one, if the file has tensors that nobody asked for: a graph without them would give
  // wrong answers.
  absl::Status CheckAllUsed() const;

  // "FILE: tensor 'NAME' WHAT".
  std::string Message(absl::string_view name, absl::string_view what) const;

 private:
  absl::StatusOr<TensorRef> Find(absl::string_view name);
  absl::StatusOr<TensorRef> VectorOfTypes(absl::string_view name, int64_t columns,
                                          absl::Span<const gguf::TensorType> types);
  absl::Status CheckType(const TensorRef& tensor, absl::Span<const gguf::TensorType> types) const;
  absl::Status WrongShape(const TensorRef& tensor, absl::string_view wanted) const;

  const gguf::File& file_;
  absl::flat_hash_set<const gguf::TensorInfo*> used_;
};

}  // namespace isotherm::model

#endif  // ISOTHERM_COMMON_MODEL_TENSOR_FINDER_H_
