#include "common/model/architecture.h"
#include "common/model/transformer.h"

namespace isotherm::model {

// A Llama whose FFN is ungated, with squared ReLU.
absl::Status LoadArcee(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts) {
  parts.hyperparameters.gated = false;
  parts.hyperparameters.activation = Activation::kRelu2;
  return LoadSequentialTransformer(metadata, tensors, parts);
}

}  // namespace isotherm::model
