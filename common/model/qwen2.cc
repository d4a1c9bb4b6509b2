#include "common/model/architecture.h"
#include "common/model/transformer.h"

namespace isotherm::model {

// Qwen 2 and 2.5: a Llama with biases in attention and GPT-NeoX's rotary pairs.
absl::Status LoadQwen2(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts) {
  parts.hyperparameters.rope_pairs = RopePairs::kHalves;
  return LoadSequentialTransformer(metadata, tensors, parts);
}

}  // namespace isotherm::model
