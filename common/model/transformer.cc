#include "common/model/transformer.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/model/sparse_ffn.h"

namespace isotherm::model {
namespace {

// Far above any published model; they keep products of two sizes within 64 bits and absurd files from being
// believed.
constexpr int64_t kMostLayers = 1024;
constexpr int64_t kMostHidden = int64_t{1} << 20;
constexpr int64_t kMostFfn = int64_t{1} << 22;
constexpr int64_t kMostHeads = int64_t{1} << 12;
constexpr int64_t kMostHeadDim = int64_t{1} << 12;
constexpr int64_t kMostVocabulary = int64_t{1} << 24;
constexpr int64_t kMostContext = int64_t{1} << 26;

absl::Status LoadSizes(const MetadataReader& metadata, Hyperparameters& h) {
  ISOTHERM_ASSIGN_OR_RETURN(h.layers, metadata.Integer(".block_count", 1, kMostLayers));
  ISOTHERM_ASSIGN_OR_RETURN(h.hidden, metadata.Integer(".embedding_length", 1, kMostHidden));
  ISOTHERM_ASSIGN_OR_RETURN(h.ffn, metadata.Integer(".feed_forward_length", 1, kMostFfn));
  ISOTHERM_ASSIGN_OR_RETURN(h.trained_context, metadata.Integer(".context_length", 1, kMostContext));
  const char* epsilon_key =
      h.norm == NormKind::kRms ? ".attention.layer_norm_rms_epsilon" : ".attention.layer_norm_epsilon";
  if (h.norm_epsilon == 0 || metadata.Has(epsilon_key)) {
    ISOTHERM_ASSIGN_OR_RETURN(h.norm_epsilon, metadata.Float(epsilon_key, 0, 1));
  }
  return absl::OkStatus();
}

absl::Status LoadHeads(const MetadataReader& metadata, Hyperparameters& h) {
  ISOTHERM_ASSIGN_OR_RETURN(h.heads, metadata.Integer(".attention.head_count", 1, kMostHeads));
  ISOTHERM_ASSIGN_OR_RETURN(h.kv_heads, metadata.IntegerOr(".attention.head_count_kv", 1, h.heads, h.heads));
  if (h.heads % h.kv_heads != 0) {
    return absl::InvalidArgumentError(
        metadata.Message(".attention.head_count_kv",
                         absl::StrCat("is ", h.kv_heads, ", which does not divide the ", h.heads, " heads")));
  }
  if (metadata.Has(".attention.key_length")) {
    ISOTHERM_ASSIGN_OR_RETURN(h.head_dim, metadata.Integer(".attention.key_length", 1, kMostHeadDim));
  } else if (h.hidden % h.heads == 0) {
    h.head_dim = h.hidden / h.heads;
  } else {
    return absl::InvalidArgumentError(
        metadata.Message(".attention.head_count",
                         absl::StrCat("is ", h.heads, ", which does not divide the hidden size ", h.hidden)));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t value_length,
                            metadata.IntegerOr(".attention.value_length", 1, kMostHeadDim, h.head_dim));
  if (value_length != h.head_dim) {
    return absl::UnimplementedError(
        metadata.Message(".attention.value_length",
                         absl::StrCat("is ", value_length, ", unlike the key length ", h.head_dim)));
  }
  if (h.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(metadata.Message(
        ".attention.head_count",
        absl::StrCat("gives heads of ", h.head_dim, " dimensions, and rotary pairs need an even number")));
  }
  return absl::OkStatus();
}

// Files from before rope.scaling.* have rope.scale_linear; a factor without a type means linear, and 0 means
// none.
absl::Status LoadRopeScaling(const MetadataReader& metadata, Hyperparameters& h) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string type, metadata.StringOr(".rope.scaling.type", "linear"));
  if (type == "none") return absl::OkStatus();
  if (type != "linear") {
    return absl::UnimplementedError(
        metadata.Message(".rope.scaling.type", absl::StrCat("is '", type, "'; supported: none, linear")));
  }
  const char* factor_key =
      metadata.Has(".rope.scaling.factor") ? ".rope.scaling.factor" : ".rope.scale_linear";
  ISOTHERM_ASSIGN_OR_RETURN(const float factor, metadata.FloatOr(factor_key, 0, 1e6, 0));
  if (factor != 0 && factor != 1) {
    h.rope_scaling = RopeScaling::kLinear;
    h.rope_scale = factor;
  }
  return absl::OkStatus();
}

// Divisors of the rotary frequencies.
absl::Status CheckRopeFactors(const gguf::File& file, const TensorFinder& tensors, const TensorRef& factors) {
  const auto bytes = file.Data(*factors.info);
  for (int64_t i = 0; i < factors.columns; ++i) {
    float factor;
    std::memcpy(&factor, bytes.data() + i * sizeof(factor), sizeof(factor));
    if (!(factor > 0 && std::isfinite(factor))) {
      return absl::InvalidArgumentError(tensors.Message(
          factors.info->name,
          absl::StrCat("divides rotary frequency ", i, " by ", factor, "; expected a positive number")));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Affine> LoadProjection(const std::string& name, int64_t rows, int64_t columns,
                                      TensorFinder& tensors) {
  Affine projection;
  ISOTHERM_ASSIGN_OR_RETURN(projection.weight, tensors.Matrix(name + ".weight", rows, columns));
  ISOTHERM_ASSIGN_OR_RETURN(projection.bias, tensors.VectorIfPresent(name + ".bias", rows));
  return projection;
}

absl::StatusOr<Layer> LoadLayer(const MetadataReader& metadata, const Hyperparameters& h,
                                const std::string& prefix, TensorFinder& tensors) {
  Layer layer;
  ISOTHERM_ASSIGN_OR_RETURN(layer.attention_norm, LoadNorm(h, prefix + "attn_norm", tensors));
  ISOTHERM_RETURN_IF_ERROR(LoadAttention(h, prefix, tensors, layer));
  ISOTHERM_ASSIGN_OR_RETURN(layer.ffn_norm, LoadNorm(h, prefix + "ffn_norm", tensors));
  ISOTHERM_RETURN_IF_ERROR(LoadFfn(metadata, h, prefix, tensors, layer));
  return layer;
}

}  // namespace

absl::Status LoadHyperparameters(const MetadataReader& metadata, Hyperparameters& h) {
  ISOTHERM_RETURN_IF_ERROR(LoadSizes(metadata, h));
  ISOTHERM_RETURN_IF_ERROR(LoadHeads(metadata, h));
  return LoadActivation(metadata, h);
}

absl::Status LoadRope(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts) {
  constexpr char kFactors[] = "rope_freqs.weight";
  Hyperparameters& h = parts.hyperparameters;
  ISOTHERM_ASSIGN_OR_RETURN(h.rope_base, metadata.FloatOr(".rope.freq_base", 1, 1e12, 10000));
  ISOTHERM_ASSIGN_OR_RETURN(h.rope_dims,
                            metadata.IntegerOr(".rope.dimension_count", 2, h.head_dim, h.head_dim));
  if (h.rope_dims % 2 != 0) {
    return absl::InvalidArgumentError(metadata.Message(
        ".rope.dimension_count", absl::StrCat("is ", h.rope_dims, ", and rotary pairs need an even number")));
  }
  ISOTHERM_RETURN_IF_ERROR(LoadRopeScaling(metadata, h));
  if (!tensors.Has(kFactors)) return absl::OkStatus();
  ISOTHERM_ASSIGN_OR_RETURN(parts.rope_factors, tensors.F32Vector(kFactors, h.rope_dims / 2));
  return CheckRopeFactors(metadata.file(), tensors, parts.rope_factors);
}

absl::Status LoadEmbedding(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts) {
  Hyperparameters& h = parts.hyperparameters;
  ISOTHERM_ASSIGN_OR_RETURN(parts.token_embedding,
                            tensors.MatrixOfColumns("token_embd.weight", kMostVocabulary, h.hidden));
  h.vocabulary = parts.token_embedding.rows;
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t claimed,
                            metadata.IntegerOr(".vocab_size", 1, kMostVocabulary, h.vocabulary));
  if (claimed != h.vocabulary) {
    return absl::InvalidArgumentError(metadata.Message(
        ".vocab_size",
        absl::StrCat("is ", claimed, ", but 'token_embd.weight' has ", h.vocabulary, " rows")));
  }
  constexpr char kTokensKey[] = "tokenizer.ggml.tokens";
  if (metadata.Has(kTokensKey)) {
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t tokens, metadata.file().GetArraySize(kTokensKey));
    if (tokens > h.vocabulary) {
      return absl::InvalidArgumentError(metadata.Message(
          kTokensKey,
          absl::StrCat("has ", tokens, " tokens, but 'token_embd.weight' has ", h.vocabulary, " rows")));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Affine> LoadNorm(const Hyperparameters& h, const std::string& name, TensorFinder& tensors) {
  Affine norm;
  ISOTHERM_ASSIGN_OR_RETURN(norm.weight, tensors.Vector(name + ".weight", h.hidden));
  if (h.norm == NormKind::kLayer) {
    ISOTHERM_ASSIGN_OR_RETURN(norm.bias, tensors.VectorIfPresent(name + ".bias", h.hidden));
  }
  return norm;
}

absl::Status LoadAttention(const Hyperparameters& h, const std::string& prefix, TensorFinder& tensors,
                           Layer& layer) {
  const int64_t query = h.heads * h.head_dim;
  const int64_t key = h.kv_heads * h.head_dim;
  ISOTHERM_ASSIGN_OR_RETURN(layer.q, LoadProjection(prefix + "attn_q", query, h.hidden, tensors));
  ISOTHERM_ASSIGN_OR_RETURN(layer.k, LoadProjection(prefix + "attn_k", key, h.hidden, tensors));
  ISOTHERM_ASSIGN_OR_RETURN(layer.v, LoadProjection(prefix + "attn_v", key, h.hidden, tensors));
  ISOTHERM_ASSIGN_OR_RETURN(layer.attention_output,
                            LoadProjection(prefix + "attn_output", h.hidden, query, tensors));
  return absl::OkStatus();
}

absl::Status LoadFfn(const MetadataReader& metadata, const Hyperparameters& h, const std::string& prefix,
                     TensorFinder& tensors, Layer& layer) {
  if (h.gated) {
    ISOTHERM_ASSIGN_OR_RETURN(layer.gate, tensors.Matrix(prefix + "ffn_gate.weight", h.ffn, h.hidden));
  } else {
    ISOTHERM_ASSIGN_OR_RETURN(layer.up_bias, tensors.VectorIfPresent(prefix + "ffn_up.bias", h.ffn));
  }
  ISOTHERM_ASSIGN_OR_RETURN(layer.up, tensors.Matrix(prefix + "ffn_up.weight", h.ffn, h.hidden));
  ISOTHERM_RETURN_IF_ERROR(LoadDown(h, prefix, tensors, layer));
  return LoadPredictorAndCounts(metadata, h, prefix, tensors, layer);
}

absl::Status LoadHead(TensorFinder& tensors, ModelParts& parts) {
  const Hyperparameters& h = parts.hyperparameters;
  ISOTHERM_ASSIGN_OR_RETURN(parts.output_norm, LoadNorm(h, "output_norm", tensors));
  parts.output = parts.token_embedding;  // a tied head
  if (tensors.Has("output.weight")) {
    ISOTHERM_ASSIGN_OR_RETURN(parts.output, tensors.Matrix("output.weight", h.vocabulary, h.hidden));
  }
  return absl::OkStatus();
}

absl::Status LoadSequentialLayers(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts) {
  const Hyperparameters& h = parts.hyperparameters;
  for (int64_t i = 0; i < h.layers; ++i) {
    ISOTHERM_ASSIGN_OR_RETURN(Layer layer, LoadLayer(metadata, h, absl::StrCat("blk.", i, "."), tensors));
    parts.layers.push_back(std::move(layer));
  }
  return absl::OkStatus();
}

absl::Status LoadSequentialTransformer(const MetadataReader& metadata, TensorFinder& tensors,
                                       ModelParts& parts) {
  ISOTHERM_RETURN_IF_ERROR(LoadHyperparameters(metadata, parts.hyperparameters));
  ISOTHERM_RETURN_IF_ERROR(LoadRope(metadata, tensors, parts));
  ISOTHERM_RETURN_IF_ERROR(LoadEmbedding(metadata, tensors, parts));
  ISOTHERM_RETURN_IF_ERROR(LoadSequentialLayers(metadata, tensors, parts));
  return LoadHead(tensors, parts);
}

}  // namespace isotherm::model
