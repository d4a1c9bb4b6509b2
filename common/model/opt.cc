#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/model/architecture.h"
#include "common/model/transformer.h"

namespace isotherm::model {

// OPT with the norm before each branch (every size but 350M), under PowerInfer's names.
absl::Status LoadOpt(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts) {
  constexpr char kPositions[] = "position_embd.weight";
  constexpr int64_t kMostPositions = int64_t{1} << 26;
  Hyperparameters& h = parts.hyperparameters;
  h.norm = NormKind::kLayer;
  h.norm_epsilon = 1e-5f;  // files do not say
  h.gated = false;
  h.activation = Activation::kRelu;
  h.position_offset = 2;  // rows 0 and 1 belonged to padding
  ISOTHERM_RETURN_IF_ERROR(LoadHyperparameters(metadata, h));
  ISOTHERM_RETURN_IF_ERROR(LoadEmbedding(metadata, tensors, parts));
  ISOTHERM_ASSIGN_OR_RETURN(parts.position_embedding,
                            tensors.MatrixOfColumns(kPositions, kMostPositions, h.hidden));
  const int64_t positions = parts.position_embedding.rows - h.position_offset;
  if (positions < 1) {
    return absl::InvalidArgumentError(tensors.Message(
        kPositions, absl::StrCat("has ", parts.position_embedding.rows, " rows, and the first ",
                                 h.position_offset, " are of no position")));
  }
  // PowerInfer's files count those rows as context.
  h.trained_context = std::min(h.trained_context, positions);
  ISOTHERM_RETURN_IF_ERROR(LoadSequentialLayers(metadata, tensors, parts));
  return LoadHead(tensors, parts);
}

}  // namespace isotherm::model
