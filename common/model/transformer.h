#ifndef ISOTHERM_COMMON_MODEL_TRANSFORMER_H_
#define ISOTHERM_COMMON_MODEL_TRANSFORMER_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/architecture.h"

// The parts of a decoder that families share, under llama.cpp's keys and tensor names. Before the first of
// them a family's loader sets what it fixes in parts.hyperparameters: norm, norm_epsilon (what a file without
// the key means; 0: it must have it), rope_pairs, gated and the activation of a file that names none.
namespace isotherm::model {

// Everything of a family whose layers are norm, attention, norm and FFN with rotary positions.
absl::Status LoadSequentialTransformer(const MetadataReader& metadata, TensorFinder& tensors,
                                       ModelParts& parts);

// The parts, in the order in which they need each other.

// Sizes, heads, epsilon and activation.
absl::Status LoadHyperparameters(const MetadataReader& metadata, Hyperparameters& hyperparameters);
// Without it rope_dims stays 0.
absl::Status LoadRope(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts);
// The embedding says how many tokens there are; what the metadata says must agree.
absl::Status LoadEmbedding(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts);
absl::Status LoadSequentialLayers(const MetadataReader& metadata, TensorFinder& tensors, ModelParts& parts);
// The last norm and the output matrix, which is the embedding where the file has none.
absl::Status LoadHead(TensorFinder& tensors, ModelParts& parts);

// NAME.weight, and for layer norms NAME.bias where it is there.
absl::StatusOr<Affine> LoadNorm(const Hyperparameters& hyperparameters, const std::string& name,
                                TensorFinder& tensors);
// PREFIXattn_q, attn_k, attn_v and attn_output with such biases as there are.
absl::Status LoadAttention(const Hyperparameters& hyperparameters, const std::string& prefix,
                           TensorFinder& tensors, Layer& layer);
// Gate, up and down with their biases, predictor and firing counts.
absl::Status LoadFfn(const MetadataReader& metadata, const Hyperparameters& hyperparameters,
                     const std::string& prefix, TensorFinder& tensors, Layer& layer);

}  // namespace isotherm::model

#endif  // ISOTHERM_COMMON_MODEL_TRANSFORMER_H_
