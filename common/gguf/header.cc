#include "common/gguf/header.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/gguf/format.h"
#include "common/gguf/tensor_type.h"

namespace isotherm::gguf {
namespace {

constexpr uint32_t kVersion = 3;

absl::Status CheckName(absl::string_view what, const std::string& name, size_t most_bytes,
                       absl::flat_hash_set<absl::string_view>& seen) {
  if (name.empty() || name.size() > most_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(what, " '", Printable(name), "' has a name of ",
                                                   name.size(), " bytes where 1 to ", most_bytes,
                                                   " are allowed"));
  }
  if (!seen.insert(name).second)
    return absl::InvalidArgumentError(absl::StrCat(what, " '", name, "' is there twice"));
  return absl::OkStatus();
}

bool SaysHowTheFileLies(absl::string_view key) {
  return key == kAlignmentKey || absl::StartsWith(key, "split.");
}

}  // namespace

void Header::Remove(absl::string_view key) {
  std::erase_if(metadata_, [&](const Metadata& metadata) { return metadata.key == key; });
}

void Header::CopyMetadata(const File& source) {
  for (const std::string& key : source.MetadataKeys()) {
    if (SaysHowTheFileLies(key)) continue;
    const auto encoded = source.EncodedValue(key);
    SetEncoded(key, {encoded.begin(), encoded.end()});
  }
}

void Header::AddTensor(std::string name, TensorType type, std::vector<int64_t> dims) {
  tensors_.push_back({std::move(name), type, std::move(dims)});
}

void Header::SetEncoded(absl::string_view key, std::vector<uint8_t> encoded) {
  const auto found = std::find_if(metadata_.begin(), metadata_.end(),
                                  [&](const Metadata& metadata) { return metadata.key == key; });
  if (found != metadata_.end()) {
    found->encoded = std::move(encoded);
  } else {
    metadata_.push_back({std::string(key), std::move(encoded)});
  }
}

absl::StatusOr<Header::Encoded> Header::Encode() const {
  Encoded encoded;
  const absl::string_view magic = form_ == Form::kPowerInfer ? kPowerInferMagic : kMagic;
  encoded.bytes.assign(magic.begin(), magic.end());
  Append(encoded.bytes, kVersion);
  Append<uint64_t>(encoded.bytes, tensors_.size());
  Append<uint64_t>(encoded.bytes, metadata_.size());
  ISOTHERM_RETURN_IF_ERROR(EncodeMetadata(encoded.bytes));
  ISOTHERM_RETURN_IF_ERROR(EncodeTensors(encoded));
  return encoded;
}

absl::Status Header::EncodeMetadata(std::vector<uint8_t>& out) const {
  absl::flat_hash_set<absl::string_view> seen;
  for (const Metadata& metadata : metadata_) {
    ISOTHERM_RETURN_IF_ERROR(CheckName("metadata key", metadata.key, kMostKeyBytes, seen));
    Append(out, absl::string_view(metadata.key));
    Append(out, absl::MakeConstSpan(metadata.encoded));
  }
  return absl::OkStatus();
}

absl::Status Header::EncodeTensors(Encoded& encoded) const {
  absl::flat_hash_set<absl::string_view> seen;
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    ISOTHERM_RETURN_IF_ERROR(CheckName("tensor", tensor.name, kMostTensorNameBytes, seen));
    const auto bytes = TensorBytes(tensor.type, tensor.dims);
    if (!bytes.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", tensor.name, "' ", bytes.status().message()));
    }
    if (*bytes == 0) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", tensor.name, "' is of ",
                                                     TensorTypeName(tensor.type), ", which is not known"));
    }
    Append(encoded.bytes, absl::string_view(tensor.name));
    Append(encoded.bytes, static_cast<uint32_t>(tensor.dims.size()));
    for (const int64_t dimension : tensor.dims) Append(encoded.bytes, static_cast<uint64_t>(dimension));
    Append(encoded.bytes, TypeNumber(tensor.type, form_ == Form::kPowerInfer));
    Append(encoded.bytes, offset);
    encoded.tensor_bytes.push_back(*bytes);
    offset = AlignUp(offset + *bytes, kDefaultAlignment);
  }
  encoded.bytes.resize(AlignUp(encoded.bytes.size(), kDefaultAlignment));
  encoded.file_bytes = encoded.bytes.size() + offset;
  return absl::OkStatus();
}

}  // namespace isotherm::gguf
