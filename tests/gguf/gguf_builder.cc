#include "tests/gguf/gguf_builder.h"

#include <algorithm>
#include <utility>

namespace isotherm::testing {

using gguf::Append;

GgufBuilder& GgufBuilder::SetMagic(const std::string& magic) {
  magic_ = magic;
  return *this;
}

GgufBuilder& GgufBuilder::SetVersion(uint32_t version) {
  version_ = version;
  return *this;
}

GgufBuilder& GgufBuilder::SetAlignment(uint64_t alignment) {
  alignment_ = alignment;
  return *this;
}

GgufBuilder& GgufBuilder::AddEncoded(const std::string& key, Bytes encoded) {
  metadata_.push_back({key, std::move(encoded)});
  return *this;
}

GgufBuilder& GgufBuilder::AddRaw(const std::string& key, uint32_t type, const Bytes& payload) {
  Bytes encoded;
  Append(encoded, type);
  Append(encoded, absl::MakeConstSpan(payload));
  return AddEncoded(key, std::move(encoded));
}

GgufBuilder& GgufBuilder::AddRawArray(const std::string& key, uint32_t element_type, uint64_t count,
                                      const Bytes& payload) {
  Bytes array;
  Append(array, element_type);
  Append(array, count);
  Append(array, absl::MakeConstSpan(payload));
  return AddRaw(key, static_cast<uint32_t>(gguf::ValueType::kArray), array);
}

GgufBuilder& GgufBuilder::Remove(const std::string& key) {
  std::erase_if(metadata_, [&](const Metadata& metadata) { return metadata.key == key; });
  return *this;
}

GgufBuilder& GgufBuilder::AddTensor(const std::string& name, const std::vector<uint64_t>& dims,
                                    gguf::TensorType type, Bytes data) {
  tensors_.push_back({name, dims, type, std::move(data)});
  return *this;
}

GgufBuilder& GgufBuilder::OverrideOffset(const std::string& name, uint64_t offset) {
  for (Tensor& tensor : tensors_) {
    if (tensor.name != name) continue;
    tensor.has_offset = true;
    tensor.offset = offset;
  }
  return *this;
}

GgufBuilder& GgufBuilder::RemoveTensor(const std::string& name) {
  std::erase_if(tensors_, [&](const Tensor& tensor) { return tensor.name == name; });
  return *this;
}

Bytes GgufBuilder::Build() const {
  Bytes header(magic_.begin(), magic_.end());
  Append(header, version_);
  Append<uint64_t>(header, tensors_.size());
  Append<uint64_t>(header, metadata_.size());
  for (const Metadata& metadata : metadata_) {
    Append(header, absl::string_view(metadata.key));
    Append(header, absl::MakeConstSpan(metadata.encoded));
  }
  Bytes data;
  for (const Tensor& tensor : tensors_) {
    Pad(data, alignment_);
    Append(header, absl::string_view(tensor.name));
    Append(header, static_cast<uint32_t>(tensor.dims.size()));
    for (const uint64_t dimension : tensor.dims) Append(header, dimension);
    Append(header, static_cast<uint32_t>(tensor.type));
    Append<uint64_t>(header, tensor.has_offset ? tensor.offset : data.size());
    Append(data, absl::MakeConstSpan(tensor.data));
  }
  Pad(header, alignment_);
  Append(header, absl::MakeConstSpan(data));
  return header;
}

void GgufBuilder::Pad(Bytes& out, uint64_t alignment) {
  out.resize((out.size() + alignment - 1) / alignment * alignment);
}

}  // namespace isotherm::testing
