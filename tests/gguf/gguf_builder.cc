#include "tests/gguf/gguf_builder.h"

#include <algorithm>
#include <utility>

namespace isotherm::testing {
namespace {

constexpr uint32_t kStringType = 8;
constexpr uint32_t kArrayType = 9;

}  // namespace

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

GgufBuilder& GgufBuilder::Add(const std::string& key, const std::string& value) {
  return AddRaw(key, kStringType, EncodeString(value));
}

GgufBuilder& GgufBuilder::AddArray(const std::string& key, const std::vector<std::string>& values) {
  Bytes elements;
  for (const std::string& value : values) Append(elements, EncodeString(value));
  return AddRawArray(key, kStringType, values.size(), elements);
}

GgufBuilder& GgufBuilder::AddRaw(const std::string& key, uint32_t type, const Bytes& payload) {
  Metadata metadata{key, Encode(type)};
  Append(metadata.encoded, payload);
  metadata_.push_back(std::move(metadata));
  return *this;
}

GgufBuilder& GgufBuilder::AddRawArray(const std::string& key, uint32_t element_type, uint64_t count,
                                      const Bytes& payload) {
  Bytes array = Encode(element_type);
  Append(array, Encode(count));
  Append(array, payload);
  return AddRaw(key, kArrayType, array);
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
  Append(header, Encode(version_));
  Append(header, Encode<uint64_t>(tensors_.size()));
  Append(header, Encode<uint64_t>(metadata_.size()));
  for (const Metadata& metadata : metadata_) {
    Append(header, EncodeString(metadata.key));
    Append(header, metadata.encoded);
  }
  Bytes data;
  for (const Tensor& tensor : tensors_) {
    Pad(data, alignment_);
    Append(header, EncodeString(tensor.name));
    Append(header, Encode(static_cast<uint32_t>(tensor.dims.size())));
    for (const uint64_t dimension : tensor.dims) Append(header, Encode(dimension));
    Append(header, Encode(static_cast<uint32_t>(tensor.type)));
    Append(header, Encode<uint64_t>(tensor.has_offset ? tensor.offset : data.size()));
    Append(data, tensor.data);
  }
  Pad(header, alignment_);
  Append(header, data);
  return header;
}

Bytes GgufBuilder::EncodeString(const std::string& text) {
  Bytes result = Encode<uint64_t>(text.size());
  Append(result, Bytes(text.begin(), text.end()));
  return result;
}

void GgufBuilder::Pad(Bytes& out, uint64_t alignment) {
  out.resize((out.size() + alignment - 1) / alignment * alignment);
}

}  // namespace isotherm::testing
