#include "common/model/tensor_finder.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "common/base/status_macros.h"

namespace isotherm::model {
namespace {

using gguf::TensorType;

constexpr TensorType kWeightTypes[] = {TensorType::kF32,  TensorType::kF16,  TensorType::kBF16,
                                       TensorType::kQ8_0, TensorType::kQ4_0, TensorType::kQ4_1,
                                       TensorType::kQ5_0, TensorType::kQ5_1, TensorType::kQ4_K,
                                       TensorType::kQ5_K, TensorType::kQ6_K};
constexpr TensorType kVectorTypes[] = {TensorType::kF32, TensorType::kF16};

bool Contains(absl::Span<const TensorType> types, TensorType type) {
  return std::find(types.begin(), types.end(), type) != types.end();
}

std::string Names(absl::Span<const TensorType> types) {
  return absl::StrJoin(types, ", ", [](std::string* out, TensorType type) {
    absl::StrAppend(out, gguf::TensorTypeName(type));
  });
}

}  // namespace

absl::StatusOr<TensorRef> TensorFinder::Matrix(absl::string_view name, int64_t rows, int64_t columns) {
  ISOTHERM_ASSIGN_OR_RETURN(const TensorRef tensor, Find(name));
  if (tensor.info->rank > 2 || tensor.rows != rows || tensor.columns != columns) {
    return WrongShape(tensor, absl::StrCat("[", columns, ", ", rows, "]"));
  }
  ISOTHERM_RETURN_IF_ERROR(CheckType(tensor, kWeightTypes));
  return tensor;
}

absl::StatusOr<TensorRef> TensorFinder::MatrixOfColumns(absl::string_view name, int64_t most_rows,
                                                        int64_t columns) {
  ISOTHERM_ASSIGN_OR_RETURN(const TensorRef tensor, Find(name));
  if (tensor.info->rank > 2 || tensor.rows > most_rows || tensor.columns != columns) {
    return WrongShape(tensor, absl::StrCat("[", columns, ", 1 to ", most_rows, "]"));
  }
  ISOTHERM_RETURN_IF_ERROR(CheckType(tensor, kWeightTypes));
  return tensor;
}

absl::StatusOr<TensorRef> TensorFinder::Vector(absl::string_view name, int64_t columns) {
  return VectorOfTypes(name, columns, kVectorTypes);
}

absl::StatusOr<TensorRef> TensorFinder::VectorIfPresent(absl::string_view name, int64_t columns) {
  return Has(name) ? Vector(name, columns) : TensorRef();
}

absl::StatusOr<TensorRef> TensorFinder::F32Vector(absl::string_view name, int64_t columns) {
  return VectorOfTypes(name, columns, {TensorType::kF32});
}

absl::Status TensorFinder::CheckAllUsed() const {
  for (const gguf::TensorInfo& tensor : file_.tensors()) {
    if (used_.contains(&tensor)) continue;
    return absl::UnimplementedError(Message(
        tensor.name, "is not one this architecture is known to have, and without it answers would be wrong"));
  }
  return absl::OkStatus();
}

std::string TensorFinder::Message(absl::string_view name, absl::string_view what) const {
  return absl::StrCat(file_.path(), ": tensor '", name, "' ", what);
}

absl::StatusOr<TensorRef> TensorFinder::Find(absl::string_view name) {
  const gguf::TensorInfo* info = file_.FindTensor(name);
  if (info == nullptr) return absl::InvalidArgumentError(Message(name, "is missing"));
  used_.insert(info);
  return TensorRef{info, info->dims[1], info->dims[0]};
}

absl::StatusOr<TensorRef> TensorFinder::VectorOfTypes(absl::string_view name, int64_t columns,
                                                      absl::Span<const TensorType> types) {
  ISOTHERM_ASSIGN_OR_RETURN(const TensorRef tensor, Find(name));
  if (tensor.info->rank != 1 || tensor.columns != columns)
    return WrongShape(tensor, absl::StrCat("[", columns, "]"));
  ISOTHERM_RETURN_IF_ERROR(CheckType(tensor, types));
  return tensor;
}

absl::Status TensorFinder::CheckType(const TensorRef& tensor, absl::Span<const TensorType> types) const {
  if (Contains(types, tensor.info->type)) return absl::OkStatus();
  return absl::UnimplementedError(
      Message(tensor.info->name, absl::StrCat("is of type ", gguf::TensorTypeName(tensor.info->type),
                                              ", which is not supported here; supported: ", Names(types))));
}

absl::Status TensorFinder::WrongShape(const TensorRef& tensor, absl::string_view wanted) const {
  const auto dims = absl::MakeConstSpan(tensor.info->dims).first(tensor.info->rank);
  return absl::InvalidArgumentError(
      Message(tensor.info->name,
              absl::StrCat("has shape [", absl::StrJoin(dims, ", "), "] where ", wanted, " is expected")));
}

}  // namespace isotherm::model
