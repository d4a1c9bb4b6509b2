#include "common/model/architecture.h"
#include "common/model/transformer.h"

namespace isotherm::model {

// A Mistral with dReLU (https://huggingface.co/PowerInfer/Bamboo-base-v0_1).
absl::Status LoadBamboo(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts) {
  parts.hyperparameters.activation = Activation::kDRelu;
  return LoadSequentialTransformer(metadata, tensors, parts);
}

}  // namespace isotherm::model
