#include "common/neuron/gpu_index.h"

#include <cstring>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/gguf/file.h"

namespace isotherm::neuron {
namespace {

constexpr char kArchitectureKey[] = "general.architecture";
constexpr char kArchitecture[] = "generic.gpu_index";
constexpr char kBlockCountKey[] = "generic.gpu_index.block_count";

// The integers of a 1-D tensor.
absl::StatusOr<std::vector<int32_t>> ReadIntegers(const gguf::File& file, const gguf::TensorInfo& tensor) {
  if (tensor.type != gguf::TensorType::kI32 || tensor.rank != 1) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tensor '", tensor.name,
                                                   "' is no list of 32-bit integers, but of type ",
                                                   gguf::TensorTypeName(tensor.type)));
  }
  std::vector<int32_t> values(tensor.dims[0]);
  if (!values.empty()) std::memcpy(values.data(), file.Data(tensor).data(), values.size() * sizeof(int32_t));
  return values;
}

absl::Status CheckIsIndexOf(const gguf::File& file, int64_t layers) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string architecture, file.GetString(kArchitectureKey));
  if (!file.is_powerinfer() || architecture != kArchitecture) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), " is no index file of PowerInfer: that has the magic PWRI and the architecture '",
        kArchitecture, "'"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t blocks, file.GetInteger(kBlockCountKey));
  if (blocks != layers) {
    return absl::FailedPreconditionError(
        absl::StrCat(file.path(), ": is of ", blocks, " layers, the model has ", layers));
  }
  if (static_cast<int64_t>(file.tensors().size()) != 2 * layers) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": has ", file.tensors().size(),
                                                   " tensors where ", layers, " layers need two each"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint64_t>> ReadMask(const gguf::File& file, const gguf::TensorInfo& tensor,
                                               int64_t ffn) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<int32_t> marks, ReadIntegers(file, tensor));
  if (static_cast<int64_t>(marks.size()) != ffn) {
    return absl::FailedPreconditionError(absl::StrCat(file.path(), ": tensor '", tensor.name, "' is of ",
                                                      marks.size(), " neurons, a layer of the model has ",
                                                      ffn));
  }
  std::vector<uint64_t> mask(MaskWords(ffn));
  for (int64_t neuron = 0; neuron < ffn; ++neuron) {
    if (marks[neuron] == 1) SetBit(mask.data(), neuron);
    if (marks[neuron] == 0 || marks[neuron] == 1) continue;
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tensor '", tensor.name, "' marks neuron ",
                                                   neuron, " with ", marks[neuron],
                                                   " where 0 or 1 is expected"));
  }
  return mask;
}

// The bucket must list what the mask marks, in ascending order.
absl::Status CheckBucket(const gguf::File& file, const gguf::TensorInfo& tensor,
                         const std::vector<uint64_t>& mask) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<int32_t> bucket, ReadIntegers(file, tensor));
  std::vector<int32_t> marked;
  ForEachSet(mask.data(), static_cast<int64_t>(mask.size()),
             [&](int64_t neuron) { marked.push_back(static_cast<int32_t>(neuron)); });
  if (bucket == marked) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      file.path(), ": tensor '", tensor.name, "' does not list, ascending, the ", marked.size(),
      " neurons that the tensor before it marks; the file is damaged, have PowerInfer make it anew"));
}

}  // namespace

absl::StatusOr<Placement> ReadGpuIndex(const std::string& path, int64_t layers, int64_t ffn) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<gguf::File> file, gguf::File::Open(path));
  ISOTHERM_RETURN_IF_ERROR(CheckIsIndexOf(*file, layers));
  Placement placement = AllCold(layers, ffn);
  for (int64_t layer = 0; layer < layers; ++layer) {
    ISOTHERM_ASSIGN_OR_RETURN(placement.hot[layer], ReadMask(*file, file->tensors()[2 * layer], ffn));
    ISOTHERM_RETURN_IF_ERROR(CheckBucket(*file, file->tensors()[2 * layer + 1], placement.hot[layer]));
  }
  return placement;
}

}  // namespace isotherm::neuron
