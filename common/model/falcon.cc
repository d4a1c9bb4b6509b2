#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/model/architecture.h"
#include "common/model/transformer.h"

namespace isotherm::model {

namespace {

// `rows` rows of a tensor from `first_row` on.
TensorRef RowsOf(const TensorRef& tensor, int64_t first_row, int64_t rows) {
  return {tensor.info, rows, tensor.columns, first_row};
}

// Files have the queries of all heads, then all keys, then all values.
absl::Status LoadFusedAttention(const Hyperparameters& h, const std::string& prefix, TensorFinder& tensors,
                                Layer& layer) {
  const int64_t query = h.heads * h.head_dim;
  const int64_t key = h.kv_heads * h.head_dim;
  ISOTHERM_ASSIGN_OR_RETURN(const TensorRef qkv,
                            tensors.Matrix(prefix + "attn_qkv.weight", query + 2 * key, h.hidden));
  layer.q.weight = RowsOf(qkv, 0, query);
  layer.k.weight = RowsOf(qkv, query, key);
  layer.v.weight = RowsOf(qkv, query + key, key);
  ISOTHERM_ASSIGN_OR_RETURN(layer.attention_output.weight,
                            tensors.Matrix(prefix + "attn_output.weight", h.hidden, query));
  return absl::OkStatus();
}

// The 7B form has one norm for both branches. The 40B form has attn_norm for the FFN and attn_norm_2 for
// attention.
absl::StatusOr<Layer> LoadLayer(const MetadataReader& metadata, const Hyperparameters& h,
                                const std::string& prefix, TensorFinder& tensors) {
  Layer layer;
  ISOTHERM_ASSIGN_OR_RETURN(layer.ffn_norm, LoadNorm(h, prefix + "attn_norm", tensors));
  layer.attention_norm = layer.ffn_norm;
  if (tensors.Has(prefix + "attn_norm_2.weight")) {
    ISOTHERM_ASSIGN_OR_RETURN(layer.attention_norm, LoadNorm(h, prefix + "attn_norm_2", tensors));
  }
  ISOTHERM_RETURN_IF_ERROR(LoadFusedAttention(h, prefix, tensors, layer));
  ISOTHERM_RETURN_IF_ERROR(LoadFfn(metadata, h, prefix, tensors, layer));
  return layer;
}

}  // namespace

// Falcon 7B, 40B, 180B and 11B. Dense as published (GELU); ReluFalcon's files say so or are PowerInfer's.
absl::Status LoadFalcon(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts) {
  Hyperparameters& h = parts.hyperparameters;
  h.norm = NormKind::kLayer;
  h.rope_pairs = RopePairs::kHalves;
  h.gated = false;
  h.activation = Activation::kGelu;
  h.parallel_attention = true;
  ISOTHERM_RETURN_IF_ERROR(LoadHyperparameters(metadata, h));
  ISOTHERM_RETURN_IF_ERROR(LoadRope(metadata, tensors, parts));
  ISOTHERM_RETURN_IF_ERROR(LoadEmbedding(metadata, tensors, parts));
  for (int64_t i = 0; i < h.layers; ++i) {
    ISOTHERM_ASSIGN_OR_RETURN(Layer layer, LoadLayer(metadata, h, absl::StrCat("blk.", i, "."), tensors));
    parts.layers.push_back(std::move(layer));
  }
  return LoadHead(tensors, parts);
}

}  // namespace isotherm::model
