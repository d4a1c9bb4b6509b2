#ifndef ISOTHERM_TESTS_GGUF_GGUF_BUILDER_H_
#define ISOTHERM_TESTS_GGUF_GGUF_BUILDER_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/gguf/encode.h"
#include "common/gguf/file.h"

// GGUF files for tests. Nothing is checked, so that broken files can be built as well.
namespace isotherm::testing {

using Bytes = std::vector<uint8_t>;

// Rounds values to what a file stores: F32, F16, Q8_0 and Q4_0 as ggml's reference quantiser does. Rows may
// lie one after another, as blocks never span two. Aborts on other types and on a partial block.
Bytes EncodeWeights(gguf::TensorType type, const std::vector<float>& values);

// Collects metadata and tensors, in the order of the calls, and lays them out.
class GgufBuilder {
 public:
  GgufBuilder& SetMagic(const std::string& magic);  // 4 bytes; "GGUF" if never called
  GgufBuilder& SetVersion(uint32_t version);        // 3
  // Where data sections and tensors start; add the key general.alignment too if it is not 32.
  GgufBuilder& SetAlignment(uint64_t alignment);

  // Scalars of the arithmetic type given, bool included, and strings.
  template <typename T>
  GgufBuilder& Add(const std::string& key, T value) {
    return AddEncoded(key, gguf::EncodeValue(value));
  }
  GgufBuilder& Add(const std::string& key, const char* value) { return Add(key, std::string(value)); }
  template <typename T>
  GgufBuilder& AddArray(const std::string& key, const std::vector<T>& values) {
    return AddEncoded(key, gguf::EncodeArray(values));
  }
  // `type` is the format's number of the value's type.
  GgufBuilder& AddRaw(const std::string& key, uint32_t type, const Bytes& payload);
  GgufBuilder& AddRawArray(const std::string& key, uint32_t element_type, uint64_t count,
                           const Bytes& payload);
  GgufBuilder& Remove(const std::string& key);

  // `dims` in ggml's order, the contiguous one first.
  GgufBuilder& AddTensor(const std::string& name, const std::vector<uint64_t>& dims, gguf::TensorType type,
                         Bytes data);
  GgufBuilder& AddTensor(const std::string& name, const std::vector<uint64_t>& dims, gguf::TensorType type,
                         const std::vector<float>& values) {
    return AddTensor(name, dims, type, EncodeWeights(type, values));
  }
  // Writes this offset into the table in place of the true one.
  GgufBuilder& OverrideOffset(const std::string& name, uint64_t offset);
  GgufBuilder& RemoveTensor(const std::string& name);

  Bytes Build() const;

 private:
  struct Metadata {
    std::string key;
    Bytes encoded;  // type and value
  };
  struct Tensor {
    std::string name;
    std::vector<uint64_t> dims;
    gguf::TensorType type;
    Bytes data;
    bool has_offset = false;
    uint64_t offset = 0;
  };

  GgufBuilder& AddEncoded(const std::string& key, Bytes encoded);
  static void Pad(Bytes& out, uint64_t alignment);

  std::string magic_ = "GGUF";
  uint32_t version_ = 3;
  uint64_t alignment_ = 32;
  std::vector<Metadata> metadata_;
  std::vector<Tensor> tensors_;
};

}  // namespace isotherm::testing

#endif  // ISOTHERM_TESTS_GGUF_GGUF_BUILDER_H_
