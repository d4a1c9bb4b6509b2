#include "common/model/architecture.h"
#include "common/model/transformer.h"

namespace isotherm::model {

// Llama 1 to 3 and what shares their form: Mistral, ReluLLaMA, ProSparse, TurboSparse.
absl::Status LoadLlama(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts) {
  return LoadSequentialTransformer(metadata, tensors, parts);
}

}  // namespace isotherm::model
