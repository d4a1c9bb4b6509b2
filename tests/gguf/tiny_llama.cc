#include "tests/gguf/tiny_llama.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <vector>

namespace isotherm::testing {
namespace {

using Values = std::vector<float>;

// Token types of llama.cpp's vocabulary.
constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kByte = 6;

class TinyLlamaWriter {
 public:
  explicit TinyLlamaWriter(const TinyLlamaOptions& options) : options_(options), random_(options.seed) {}

  GgufBuilder Write() {
    if (options_.predictor == TinyPredictor::kPowerInfer) builder_.SetMagic("PWRI");
    WriteHyperparameters();
    WriteVocabulary();
    WritePredictorKeys();
    AddMatrix("token_embd.weight", options_.vocabulary, options_.hidden,
              Random(options_.vocabulary * options_.hidden, 1.0f));
    for (int64_t layer = 0; layer < options_.layers; ++layer)
      WriteLayer("blk." + std::to_string(layer) + ".");
    AddVector("output_norm.weight", Norm());
    if (!options_.tied_head) AddMatrix("output.weight", options_.vocabulary, options_.hidden);
    return std::move(builder_);
  }

 private:
  void WriteHyperparameters() {
    const auto add = [this](const std::string& key, int64_t value) {
      builder_.Add(options_.architecture + "." + key, static_cast<uint32_t>(value));
    };
    builder_.Add("general.architecture", options_.architecture).Add("general.name", "tiny");
    add("vocab_size", options_.vocabulary);
    add("context_length", options_.context);
    add("embedding_length", options_.hidden);
    add("block_count", options_.layers);
    add("feed_forward_length", options_.ffn);
    add("attention.head_count", options_.heads);
    add("attention.head_count_kv", options_.kv_heads);
    add("rope.dimension_count", HeadDim());
    builder_.Add(options_.architecture + ".attention.layer_norm_rms_epsilon", 1e-5f)
        .Add(options_.architecture + ".rope.freq_base", 10000.0f);
    if (!options_.activation.empty()) builder_.Add("isotherm.ffn.activation", options_.activation);
    if (options_.activation == "fatrelu") {
      builder_.Add("isotherm.ffn.activation_threshold", options_.activation_threshold);
    }
    if (options_.activation_counts) builder_.Add<uint64_t>("isotherm.profile.tokens", 1000);
  }

  void WriteVocabulary() {
    std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
    std::vector<int32_t> types = {kUnknown, kControl, kControl};
    for (int byte = 0; byte < 256; ++byte) {
      char token[8];
      std::snprintf(token, sizeof(token), "<0x%02X>", byte);
      tokens.push_back(token);
      types.push_back(kByte);
    }
    std::vector<float> scores(tokens.size(), 0.0f);
    const std::vector<std::string> pieces = {"\u2581", "e", "t", "a", "o", "i",       "n",  "s",
                                             "h",      "r", "d", "l", "u", "\u2581t", "he", "\u2581the"};
    for (int64_t i = 0; static_cast<int64_t>(tokens.size()) < options_.vocabulary; ++i) {
      tokens.push_back(i < static_cast<int64_t>(pieces.size()) ? pieces[i] : "filler" + std::to_string(i));
      types.push_back(kNormal);
      scores.push_back(-static_cast<float>(i));
    }
    builder_.Add("tokenizer.ggml.model", "llama")
        .AddArray("tokenizer.ggml.tokens", tokens)
        .AddArray("tokenizer.ggml.scores", scores)
        .AddArray("tokenizer.ggml.token_type", types)
        .Add<uint32_t>("tokenizer.ggml.unknown_token_id", 0)
        .Add<uint32_t>("tokenizer.ggml.bos_token_id", 1)
        .Add<uint32_t>("tokenizer.ggml.eos_token_id", 2)
        .Add("tokenizer.ggml.add_bos_token", true)
        .Add("tokenizer.ggml.add_eos_token", false);
  }

  void WritePredictorKeys() {
    if (options_.predictor == TinyPredictor::kPowerInfer) builder_.Add("powerinfer.sparse_threshold", 0.0f);
    if (options_.predictor != TinyPredictor::kLinear) return;
    builder_.Add("isotherm.predictor.form", "linear")
        .Add("isotherm.predictor.input", "ffn_input")
        .Add("isotherm.predictor.threshold", 0.0f);
  }

  void WriteLayer(const std::string& prefix) {
    const int64_t attention = options_.heads * HeadDim();
    const int64_t kv = options_.kv_heads * HeadDim();
    AddVector(prefix + "attn_norm.weight", Norm());
    AddMatrix(prefix + "attn_q.weight", attention, options_.hidden);
    AddMatrix(prefix + "attn_k.weight", kv, options_.hidden);
    AddMatrix(prefix + "attn_v.weight", kv, options_.hidden);
    AddMatrix(prefix + "attn_output.weight", options_.hidden, attention);
    const Values norm = Norm();
    const Values gate = RandomMatrix(options_.ffn, options_.hidden);
    AddVector(prefix + "ffn_norm.weight", norm);
    AddMatrix(prefix + "ffn_gate.weight", options_.ffn, options_.hidden, gate);
    AddMatrix(prefix + "ffn_up.weight", options_.ffn, options_.hidden);
    if (options_.transposed_down || options_.predictor == TinyPredictor::kPowerInfer) {
      AddMatrix(prefix + "ffn_down_t.weight", options_.ffn, options_.hidden);
    } else {
      AddMatrix(prefix + "ffn_down.weight", options_.hidden, options_.ffn);
    }
    WritePredictor(prefix, gate, norm);
    if (options_.activation_counts) AddVector(prefix + "ffn_act_counts", Counts());
  }

  // The predictor sees the first coordinates of its input only, as many as its rank allows, and scores with
  // the gate's own weights for them. Where a ReLU stands between, a coordinate takes two dimensions, x =
  // relu(x) - relu(-x).
  void WritePredictor(const std::string& prefix, const Values& gate, const Values& norm) {
    if (options_.predictor == TinyPredictor::kNone) return;
    const bool powerinfer = options_.predictor == TinyPredictor::kPowerInfer;
    const int64_t rank = options_.predictor_rank, hidden = options_.hidden, ffn = options_.ffn;
    const int64_t signs = powerinfer ? 2 : 1;
    const int64_t coordinates = std::min(rank / signs, hidden);
    Values a(rank * hidden), b(ffn * rank);
    for (int64_t i = 0; i < coordinates; ++i) {
      for (int64_t s = 0; s < signs; ++s) {
        const int64_t dimension = s * coordinates + i;
        const float sign = s == 0 ? 1.0f : -1.0f;
        a[dimension * hidden + i] = sign;
        for (int64_t j = 0; j < ffn; ++j) {
          // The residual is not normalised: the norm's weights move into the scores, its positive factor is
          // of no matter.
          b[j * rank + dimension] = sign * gate[j * hidden + i] * (powerinfer ? norm[i] : 1.0f);
        }
      }
    }
    AddTensor(prefix + (powerinfer ? "fc1.weight" : "pred_a.weight"), rank, hidden, a);
    AddTensor(prefix + (powerinfer ? "fc2.weight" : "pred_b.weight"), ffn, rank, b);
    if (!powerinfer) AddVector(prefix + "pred_b.bias", Values(ffn, 0.0f));
  }

  // Uniform with the given standard deviation.
  Values Random(int64_t count, float deviation) {
    Values values(count);
    for (float& value : values) {
      const double unit = static_cast<double>(random_()) / static_cast<double>(std::mt19937::max());
      value = static_cast<float>((2 * unit - 1) * std::sqrt(3.0)) * deviation;
    }
    return values;
  }
  Values RandomMatrix(int64_t rows, int64_t columns) {
    return Random(rows * columns, 1.0f / std::sqrt(static_cast<float>(columns)));
  }
  Values Norm() {
    Values values = Random(options_.hidden, 0.2f);
    for (float& value : values) value += 1.0f;
    return values;
  }
  Values Counts() const {
    Values values(options_.ffn);
    for (int64_t j = 0; j < options_.ffn; ++j) values[j] = std::floor(1000.0f / static_cast<float>(j + 1));
    return values;
  }

  void AddMatrix(const std::string& name, int64_t rows, int64_t columns) {
    AddMatrix(name, rows, columns, RandomMatrix(rows, columns));
  }
  void AddMatrix(const std::string& name, int64_t rows, int64_t columns, const Values& values) {
    builder_.AddTensor(name, {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)}, options_.type,
                       values);
  }
  void AddTensor(const std::string& name, int64_t rows, int64_t columns, const Values& values) {
    builder_.AddTensor(name, {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)},
                       gguf::TensorType::kF32, values);
  }
  void AddVector(const std::string& name, const Values& values) {
    builder_.AddTensor(name, {values.size()}, gguf::TensorType::kF32, values);
  }

  int64_t HeadDim() const { return options_.hidden / options_.heads; }

  const TinyLlamaOptions& options_;
  std::mt19937 random_;
  GgufBuilder builder_;
};

}  // namespace

GgufBuilder TinyLlamaBuilder(const TinyLlamaOptions& options) { return TinyLlamaWriter(options).Write(); }

Bytes TinyLlama(const TinyLlamaOptions& options) { return TinyLlamaBuilder(options).Build(); }

std::string WriteFile(const std::string& path, const Bytes& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) {
    std::fprintf(stderr, "cannot write %s\n", path.c_str());
    std::abort();
  }
  return path;
}

}  // namespace isotherm::testing
