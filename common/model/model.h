#ifndef ISOTHERM_COMMON_MODEL_MODEL_H_
#define ISOTHERM_COMMON_MODEL_MODEL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/gguf/file.h"

namespace isotherm::model {

// What makes a neuron's pre-activation p (gate . x, in an ungated FFN up . x + bias) its activation; a gated
// FFN multiplies that by up . x.
//   kRelu     max(p, 0)
//   kFatRelu  p above the threshold, else 0 (ProSparse)
//   kRelu2    max(p, 0)^2 (Primer; Nemotron, Arcee)
//   kDRelu    max(p, 0), and up . x goes through max(., 0) too (TurboSparse, Bamboo); gated only
//   kSilu, kGelu  dense: no neuron is exactly zero
enum class Activation { kSilu, kGelu, kRelu, kFatRelu, kRelu2, kDRelu };
std::string ActivationName(Activation activation);  // "silu", "gelu", "relu", "fatrelu", "relu2", "drelu"

enum class NormKind { kRms, kLayer };

// Which two dimensions of a head make rotary pair i of n: (2i, 2i + 1), or (i, n + i) as in GPT-NeoX.
enum class RopePairs { kAdjacent, kHalves };

enum class RopeScaling { kNone, kLinear };

// What the graph needs to know. Sizes are in elements; all are checked to be positive, to divide where they
// must and to agree with the tensors' shapes.
struct Hyperparameters {
  std::string architecture;  // "llama"
  std::string name;
  int64_t layers = 0;
  int64_t hidden = 0;
  int64_t ffn = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocabulary = 0;
  int64_t trained_context = 0;
  NormKind norm = NormKind::kRms;
  float norm_epsilon = 0;
  float rope_base = 10000;
  int64_t rope_dims = 0;  // leading dimensions of each head that are rotated; 0: no rotary embedding
  RopePairs rope_pairs = RopePairs::kAdjacent;
  RopeScaling rope_scaling = RopeScaling::kNone;
  float rope_scale = 1;         // positions are divided by it
  int64_t position_offset = 0;  // learned positions: token t has row t + position_offset
  bool gated = true;            // the FFN has a gate matrix
  Activation activation = Activation::kSilu;
  float activation_threshold = 0;  // kFatRelu: pre-activations at or below it are zero
  // Attention and FFN both read the layer's input and are added to it together.
  bool parallel_attention = false;
  float embedding_scale = 1;  // token embeddings are multiplied by it
  float residual_scale = 1;   // what attention and FFN add to the residual is multiplied by it
  float logit_scale = 1;      // logits are multiplied by it

  // Inactive neurons exist: their activation is exactly zero.
  bool sparse() const { return activation != Activation::kSilu && activation != Activation::kGelu; }
};

// A matrix or vector inside the file: `rows` rows of `columns` contiguous weights (a vector has one row),
// from row `first_row` of the tensor on.
struct TensorRef {
  const gguf::TensorInfo* info = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t first_row = 0;  // not 0 where one tensor holds several matrices (Falcon's attn_qkv)
  bool present() const { return info != nullptr; }
};

// Weights with a bias that may be absent: of a product, weight . x + bias; of a norm, weight * x + bias.
struct Affine {
  TensorRef weight, bias;
};

// score = b . f(a . input) + bias, f = relu if `relu_between` else identity. Keep where score >= threshold.
struct LowRankPredictor {
  TensorRef a;     // [rank, hidden]
  TensorRef b;     // [ffn, rank]
  TensorRef bias;  // [ffn], may be absent
  bool relu_between = false;
  bool reads_residual = false;  // input is the residual before the FFN norm, else the FFN input
  float threshold = 0;
};

struct Layer {
  Affine attention_norm, q, k, v, attention_output;
  Affine ffn_norm;      // with parallel attention it may be attention_norm itself
  TensorRef gate, up;   // [ffn, hidden]; gate is absent from ungated FFNs
  TensorRef up_bias;    // [ffn]; ungated FFNs only, may be absent
  TensorRef down;       // [hidden, ffn], or [ffn, hidden] if down_transposed
  TensorRef down_bias;  // [hidden], may be absent
  bool down_transposed = false;
  std::optional<LowRankPredictor> predictor;
  TensorRef activation_counts;  // F32 [ffn], may be absent

  // The matrix whose product goes through the activation: what decides whether a neuron fires.
  const TensorRef& activated() const { return gate.present() ? gate : up; }
};

// The tensors and hyperparameters of one model file, found by name and checked for type and shape. Immutable.
class Model {
 public:
  // InvalidArgument names the key or tensor at fault; Unimplemented an unknown architecture or weight type,
  // with what would work.
  static absl::StatusOr<std::unique_ptr<Model>> Open(const std::string& path);
  static absl::StatusOr<std::unique_ptr<Model>> FromFile(std::unique_ptr<gguf::File> file);

  const gguf::File& file() const { return *file_; }
  const Hyperparameters& hyperparameters() const { return hyperparameters_; }
  const std::vector<Layer>& layers() const { return layers_; }
  const TensorRef& token_embedding() const { return token_embedding_; }  // [vocabulary, hidden]
  const TensorRef& position_embedding() const {
    return position_embedding_;
  }  // [positions, hidden] or absent
  // F32 [rope_dims / 2]: each rotary frequency is divided by its factor (Llama 3.1); may be absent.
  const TensorRef& rope_factors() const { return rope_factors_; }
  const Affine& output_norm() const { return output_norm_; }
  const TensorRef& output() const { return output_; }  // the embedding where the head is tied
  // The file's StructureDigest().
  const std::string& digest() const { return digest_; }
  // Tokens over which activation_counts were collected; 0 if the file does not say.
  int64_t profile_tokens() const { return profile_tokens_; }
  // File name without directory, ".gguf" and "-00001-of-00003".
  std::string DisplayName() const;

 private:
  Model() = default;
  std::unique_ptr<gguf::File> file_;
  Hyperparameters hyperparameters_;
  std::vector<Layer> layers_;
  TensorRef token_embedding_, position_embedding_, rope_factors_, output_;
  Affine output_norm_;
  std::string digest_;
  int64_t profile_tokens_ = 0;
};

}  // namespace isotherm::model

#endif  // ISOTHERM_COMMON_MODEL_MODEL_H_
