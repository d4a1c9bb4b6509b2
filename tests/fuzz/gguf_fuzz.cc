// Any bytes at all: the reader and the model loader answer with a status, and what they accept keeps its
// promises.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "absl/types/span.h"
#include "common/gguf/file.h"
#include "common/model/model.h"

namespace isotherm {
namespace {

void Check(bool condition) {
  if (!condition) std::abort();
}

void TouchMetadata(const gguf::File& file) {
  for (const std::string& key : file.MetadataKeys()) {
    Check(file.Has(key));
    Check(!file.DescribeValue(key).empty());
    (void)file.GetString(key);
    (void)file.GetInteger(key);
    (void)file.GetFloat(key);
    (void)file.GetBool(key);
    (void)file.GetArraySize(key);
    (void)file.GetStringArray(key);
    (void)file.GetIntegerArray(key);
    (void)file.GetFloatArray(key);
  }
  Check(!file.GetString("no such key").ok());
}

void TouchTensors(const gguf::File& file) {
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    Check(file.FindTensor(tensor.name) == &tensor);
    Check(!gguf::TensorTypeName(tensor.type).empty());
    Check(tensor.offset + tensor.bytes <= file.size_bytes());
    Check(file.Data(tensor).size() == tensor.bytes);
    file.PrefetchPages(tensor);
    file.ReleasePages(tensor);
  }
  Check(file.StructureDigest().size() == 32);
}

// A tensor that a model hands out holds all its rows.
void TouchTensor(const gguf::File& file, const model::TensorRef& tensor) {
  if (!tensor.present()) return;
  const gguf::BlockShape block = gguf::GetBlockShape(tensor.info->type);
  Check(tensor.rows > 0 && tensor.columns > 0 && block.weights > 0 && tensor.columns % block.weights == 0);
  const absl::Span<const uint8_t> data = file.Data(*tensor.info);
  const int64_t rows = tensor.info->dims[1];
  Check(tensor.first_row >= 0 && tensor.first_row + tensor.rows <= rows);
  Check(data.size() == static_cast<uint64_t>(rows * (tensor.columns / block.weights) * block.bytes));
  volatile uint8_t last = data.back();
  (void)last;
}

void TouchModel(const model::Model& model) {
  const model::Hyperparameters& h = model.hyperparameters();
  Check(h.layers == static_cast<int64_t>(model.layers().size()));
  Check(h.heads % h.kv_heads == 0 && h.rope_dims % 2 == 0 && h.rope_dims <= h.head_dim);
  Check(!model::ActivationName(h.activation).empty() && !model.DisplayName().empty());
  Check(model.profile_tokens() >= 0);
  const gguf::File& file = model.file();
  for (const model::TensorRef& tensor :
       {model.token_embedding(), model.output_norm().weight, model.output()}) {
    Check(tensor.present());
    TouchTensor(file, tensor);
  }
  TouchTensor(file, model.position_embedding());
  TouchTensor(file, model.rope_factors());
  TouchTensor(file, model.output_norm().bias);
  for (const model::Layer& layer : model.layers()) {
    for (const model::TensorRef& tensor :
         {layer.gate, layer.up, layer.up_bias, layer.down, layer.down_bias, layer.activation_counts}) {
      TouchTensor(file, tensor);
    }
    for (const model::Affine& pair :
         {layer.attention_norm, layer.q, layer.k, layer.v, layer.attention_output, layer.ffn_norm}) {
      Check(pair.weight.present());
      TouchTensor(file, pair.weight);
      TouchTensor(file, pair.bias);
    }
    if (!layer.predictor) continue;
    for (const model::TensorRef& tensor : {layer.predictor->a, layer.predictor->b, layer.predictor->bias}) {
      TouchTensor(file, tensor);
    }
  }
}

}  // namespace
}  // namespace isotherm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto file = isotherm::gguf::File::Parse(absl::MakeConstSpan(data, size), "fuzz.gguf");
  if (!file.ok()) return 0;
  isotherm::TouchMetadata(**file);
  isotherm::TouchTensors(**file);
  const auto model = isotherm::model::Model::FromFile(*std::move(file));
  if (model.ok()) isotherm::TouchModel(**model);
  return 0;
}
