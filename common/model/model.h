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

enum class Activation { kSilu, kRelu, kFatRelu };
std::string ActivationName(Activation activation);  // "silu", "relu", "fatrelu"

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
  float rms_epsilon = 0;
  float rope_base = 10000;
  int64_t rope_dims = 0;  // leading dimensions of each head that are rotated, in adjacent pairs (2i, 2i + 1)
  RopeScaling rope_scaling = RopeScaling::kNone;
  float rope_scale = 1;  // positions are divided by it
  Activation activation = Activation::kSilu;
  float activation_threshold = 0;  // kFatRelu: gate values at or below it are zero

  // Inactive neurons exist: relu(gate) is exactly zero for them.
  bool sparse() const { return activation != Activation::kSilu; }
};

// A matrix or vector inside the file: `rows` rows of `columns` contiguous weights (a vector has one row).
struct TensorRef {
  const gguf::TensorInfo* info = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  bool present() const { return info != nullptr; }
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
  TensorRef attention_norm, q, k, v, attention_output;
  TensorRef ffn_norm;
  TensorRef gate, up;  // [ffn, hidden]
  TensorRef down;      // [hidden, ffn], or [ffn, hidden] if down_transposed
  bool down_transposed = false;
  std::optional<LowRankPredictor> predictor;
  TensorRef activation_counts;  // F32 [ffn], may be absent
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
  const TensorRef& output_norm() const { return output_norm_; }
  const TensorRef& output() const { return output_; }  // the embedding where the head is tied
  // The file's StructureDigest().
  const std::string& digest() const { return digest_; }
  // Tokens over which activation_counts were collected; 0 if the file does not say.
  int64_t profile_tokens() const { return profile_tokens_; }
  // File name without directory and ".gguf".
  std::string DisplayName() const;

 private:
  Model() = default;
  std::unique_ptr<gguf::File> file_;
  Hyperparameters hyperparameters_;
  std::vector<Layer> layers_;
  TensorRef token_embedding_, output_norm_, output_;
  std::string digest_;
  int64_t profile_tokens_ = 0;
};

}  // namespace isotherm::model

#endif  // ISOTHERM_COMMON_MODEL_MODEL_H_
