#ifndef ISOTHERM_COMMON_MODEL_ARCHITECTURE_H_
#define ISOTHERM_COMMON_MODEL_ARCHITECTURE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/model/metadata_reader.h"
#include "common/model/model.h"
#include "common/model/tensor_finder.h"

namespace isotherm::model {

// What a loader fills in.
struct ModelParts {
  Hyperparameters hyperparameters;
  std::vector<Layer> layers;
  TensorRef token_embedding, position_embedding, rope_factors, output;
  Affine output_norm;
};

// One family of models. To add one: write its loader in a file of its own and list it in architecture.cc.
struct Architecture {
  const char* name;  // the value of general.architecture, and the prefix of its keys
  // Fills everything but hyperparameters.architecture and .name. Finds every tensor it uses through the
  // finder, which then knows of any that were left over.
  absl::Status (*load)(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts);
};

absl::Span<const Architecture> Architectures();

absl::Status LoadArcee(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts);
absl::Status LoadBamboo(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts);
absl::Status LoadFalcon(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts);
absl::Status LoadLlama(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts);
absl::Status LoadMiniCpm(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts);
absl::Status LoadNemotron(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts);
absl::Status LoadOpt(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts);
absl::Status LoadQwen2(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts);

}  // namespace isotherm::model

#endif  // ISOTHERM_COMMON_MODEL_ARCHITECTURE_H_
