#include "common/model/architecture.h"
#include "common/model/transformer.h"

namespace isotherm::model {

// Nemotron-4 and Minitron. Their norm multiplies by (1 + weight); files hold that sum.
absl::Status LoadNemotron(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts) {
  parts.hyperparameters.norm = NormKind::kLayer;
  parts.hyperparameters.rope_pairs = RopePairs::kHalves;
  parts.hyperparameters.gated = false;
  parts.hyperparameters.activation = Activation::kRelu2;
  return LoadSequentialTransformer(metadata, tensors, parts);
}

}  // namespace isotherm::model
