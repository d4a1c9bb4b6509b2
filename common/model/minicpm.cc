#include <cmath>

#include "common/base/status_macros.h"
#include "common/model/architecture.h"
#include "common/model/transformer.h"

namespace isotherm::model {

// A Llama trained with muP, which scales embeddings, branches and logits. MiniCPM-S is its ReLU form.
absl::Status LoadMiniCpm(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts) {
  constexpr double kMost = 1e6;
  Hyperparameters& h = parts.hyperparameters;
  ISOTHERM_RETURN_IF_ERROR(LoadSequentialTransformer(metadata, tensors, parts));
  // Files from before these keys are of models with scale_emb 12, scale_depth 1.4 and dim_model_base 256.
  ISOTHERM_ASSIGN_OR_RETURN(h.embedding_scale, metadata.FloatOr(".embedding_scale", 0, kMost, 12));
  ISOTHERM_ASSIGN_OR_RETURN(h.residual_scale,
                            metadata.FloatOr(".residual_scale", 0, kMost, 1.4 / std::sqrt(h.layers)));
  ISOTHERM_ASSIGN_OR_RETURN(const float logit_divisor,
                            metadata.FloatOr(".logit_scale", 1 / kMost, kMost, h.hidden / 256.0));
  h.logit_scale = 1 / logit_divisor;
  return absl::OkStatus();
}

}  // namespace isotherm::model
