// Models that cannot be run, each with the status and the words that tell its owner why.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/gguf/tiny_llama.h"
#include "tests/model/load.h"

namespace isotherm::model {
namespace {

using ::isotherm::testing::Bytes;
using ::isotherm::testing::GgufBuilder;
using ::isotherm::testing::TinyLlamaBuilder;
using ::isotherm::testing::TinyPredictor;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr gguf::TensorType kF32 = gguf::TensorType::kF32;

struct Case {
  std::string name;
  std::function<void(GgufBuilder&)> spoil;
  absl::StatusCode code;
  std::string message;
};

class RejectionTest : public ::testing::TestWithParam<Case> {};

TEST_P(RejectionTest, NamesTheFault) {
  GgufBuilder builder =
      TinyLlamaBuilder({.layers = 1, .predictor = TinyPredictor::kLinear, .activation_counts = true});
  GetParam().spoil(builder);
  const Bytes bytes = builder.Build();
  const absl::Status status = testing::LoadModel(bytes).status();
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(StartsWith("models/test.gguf: "), HasSubstr(GetParam().message)));
}

template <typename T>
std::function<void(GgufBuilder&)> Set(const std::string& key, T value) {
  return [key, value](GgufBuilder& builder) { builder.Remove(key).Add(key, value); };
}

std::function<void(GgufBuilder&)> Remove(const std::string& key) {
  return [key](GgufBuilder& builder) { builder.Remove(key); };
}

std::function<void(GgufBuilder&)> RemoveTensor(const std::string& name) {
  return [name](GgufBuilder& builder) { builder.RemoveTensor(name); };
}

// A zero tensor in place of the one of that name, if any.
std::function<void(GgufBuilder&)> SetTensor(const std::string& name, std::vector<uint64_t> dims,
                                            gguf::TensorType type = kF32) {
  return [name, dims, type](GgufBuilder& builder) {
    const gguf::BlockShape block = gguf::GetBlockShape(type);
    uint64_t weights = 1;
    for (const uint64_t dimension : dims) weights *= dimension;
    builder.RemoveTensor(name).AddTensor(
        name, dims, type, Bytes(block.weights == 0 ? 0 : weights / block.weights * block.bytes));
  };
}

std::vector<Case> KeyCases() {
  return {
      {"NoArchitecture", Remove("general.architecture"), kInvalid, "'general.architecture' is missing"},
      {"Architecture", Set("general.architecture", "mamba"), kUnimplemented,
       "is \"mamba\"; supported: arcee, bamboo, falcon, llama, minicpm, mistral, nemotron, opt, qwen2"},
      {"ArchitectureNoString", Set("general.architecture", 3), kInvalid, "where a string is expected"},
      {"NoLayers", Remove("llama.block_count"), kInvalid, "'llama.block_count' is missing"},
      {"ZeroLayers", Set<uint32_t>("llama.block_count", 0), kInvalid, "is 0 where 1 to 1024 is allowed"},
      {"ManyLayers", Set<uint32_t>("llama.block_count", 1u << 31), kInvalid, "where 1 to 1024 is allowed"},
      {"LayersBeyondTheTensors", Set<uint32_t>("llama.block_count", 2), kInvalid,
       "'blk.1.attn_norm.weight' is missing"},
      {"LayersText", Set("llama.block_count", "two"), kInvalid, "where an integer is expected"},
      {"NegativeHidden", Set<int32_t>("llama.embedding_length", -64), kInvalid,
       "'llama.embedding_length' is -64"},
      {"HugeHidden", Set<uint64_t>("llama.embedding_length", 1 << 21), kInvalid,
       "'llama.embedding_length' is 2097152"},
      {"HugeFfn", Set<uint64_t>("llama.feed_forward_length", uint64_t{1} << 40), kInvalid,
       "feed_forward_length"},
      {"ZeroContext", Set<uint32_t>("llama.context_length", 0), kInvalid, "'llama.context_length' is 0"},
      {"HeadsNoDivisor", Set<uint32_t>("llama.attention.head_count", 5), kInvalid,
       "is 2, which does not divide the 5 heads"},
      {"HeadsNoDivisorOfHidden", Set<uint32_t>("llama.attention.head_count", 6), kInvalid,
       "is 6, which does not divide the hidden size 64"},
      {"KvHeadsNoDivisor", Set<uint32_t>("llama.attention.head_count_kv", 3), kInvalid,
       "is 3, which does not divide the 4 heads"},
      {"KvHeadsAbove", Set<uint32_t>("llama.attention.head_count_kv", 8), kInvalid,
       "is 8 where 1 to 4 is allowed"},
      {"OddHeads", Set<uint32_t>("llama.attention.key_length", 15), kInvalid, "heads of 15 dimensions"},
      {"ValueLength", Set<uint32_t>("llama.attention.value_length", 8), kUnimplemented,
       "is 8, unlike the key length 16"},
      {"RmsEpsilonNaN", Set("llama.attention.layer_norm_rms_epsilon", kNaN), kInvalid,
       "layer_norm_rms_epsilon' is nan"},
      {"RopeBase", Set("llama.rope.freq_base", -1.0f), kInvalid, "'llama.rope.freq_base' is -1"},
      {"RopeDimsOdd", Set<uint32_t>("llama.rope.dimension_count", 7), kInvalid, "is 7, and rotary pairs"},
      {"RopeDimsAbove", Set<uint32_t>("llama.rope.dimension_count", 18), kInvalid,
       "is 18 where 2 to 16 is allowed"},
      {"RopeScaling", Set("llama.rope.scaling.type", "yarn"), kUnimplemented,
       "is 'yarn'; supported: none, linear"},
      {"RopeFactor", Set("llama.rope.scaling.factor", kNaN), kInvalid, "'llama.rope.scaling.factor' is nan"},
      {"VocabularySize", Set<uint32_t>("llama.vocab_size", 319), kInvalid,
       "is 319, but 'token_embd.weight' has 320 rows"},
      {"MoreTokensThanRows",
       [](GgufBuilder& builder) {
         builder.Remove("tokenizer.ggml.tokens")
             .AddArray("tokenizer.ggml.tokens", std::vector<std::string>(321, "x"));
       },
       kInvalid, "has 321 tokens, but 'token_embd.weight' has 320 rows"},
      {"Activation", Set("isotherm.ffn.activation", "swish"), kUnimplemented,
       "is 'swish'; supported: silu, gelu, relu, fatrelu, relu2, drelu"},
      {"FatReluWithoutThreshold", Set("isotherm.ffn.activation", "fatrelu"), kInvalid,
       "activation_threshold' is missing"},
      {"PredictorForm", Set("isotherm.predictor.form", "cubic"), kInvalid,
       "is 'cubic' where 'relu' or 'linear'"},
      {"NoPredictorInput", Remove("isotherm.predictor.input"), kInvalid,
       "'isotherm.predictor.input' is missing"},
      {"PredictorThreshold", Set("isotherm.predictor.threshold", kNaN), kInvalid,
       "'isotherm.predictor.threshold' is nan"},
      {"NoProfileTokens", Remove("isotherm.profile.tokens"), kInvalid,
       "'isotherm.profile.tokens' is missing"},
      {"ProfileTokens", Set<int64_t>("isotherm.profile.tokens", -1), kInvalid,
       "'isotherm.profile.tokens' is -1"},
  };
}

std::vector<Case> TensorCases() {
  return {
      {"NoEmbedding", RemoveTensor("token_embd.weight"), kInvalid, "tensor 'token_embd.weight' is missing"},
      {"EmbeddingWidth", SetTensor("token_embd.weight", {32, 320}), kInvalid,
       "has shape [32, 320] where [64, 1 to 16777216]"},
      {"NoNorm", RemoveTensor("blk.0.ffn_norm.weight"), kInvalid,
       "tensor 'blk.0.ffn_norm.weight' is missing"},
      {"NormShape", SetTensor("blk.0.ffn_norm.weight", {64, 1}), kInvalid,
       "has shape [64, 1] where [64] is expected"},
      {"NormType", SetTensor("blk.0.attn_norm.weight", {64}, gguf::TensorType::kQ8_0), kUnimplemented,
       "tensor 'blk.0.attn_norm.weight' is of type Q8_0, which is not supported here; supported: F32, F16"},
      {"Transposed", SetTensor("blk.0.ffn_gate.weight", {96, 64}), kInvalid,
       "has shape [96, 64] where [64, 96] is expected"},
      {"ThreeDimensions", SetTensor("blk.0.ffn_up.weight", {64, 96, 2}), kInvalid, "has shape [64, 96, 2]"},
      {"KWidth", SetTensor("blk.0.attn_k.weight", {64, 64}), kInvalid,
       "has shape [64, 64] where [64, 32] is expected"},
      {"WeightType", SetTensor("blk.0.attn_q.weight", {64, 64}, gguf::TensorType::kIQ4_NL), kUnimplemented,
       "tensor 'blk.0.attn_q.weight' is of type IQ4_NL"},
      {"UnknownWeightType", SetTensor("output.weight", {64, 320}, static_cast<gguf::TensorType>(77)),
       kUnimplemented, "is of type type 77"},
      {"NoDown", RemoveTensor("blk.0.ffn_down.weight"), kInvalid,
       "tensor 'blk.0.ffn_down.weight' is missing"},
      {"TwoDowns", SetTensor("blk.0.ffn_down_t.weight", {64, 96}), kUnimplemented,
       "'blk.0.ffn_down.weight' is not one"},
      {"HeadShape", SetTensor("output.weight", {64, 319}), kInvalid,
       "has shape [64, 319] where [64, 320] is expected"},
      {"RopeFactors", SetTensor("rope_freqs.weight", {8}), kInvalid,
       "'rope_freqs.weight' divides rotary frequency 0 by 0"},
      {"RopeFactorsShape", SetTensor("rope_freqs.weight", {16}), kInvalid, "where [8] is expected"},
      {"BiasShape", SetTensor("blk.0.attn_q.bias", {32}), kInvalid, "has shape [32] where [64] is expected"},
      {"GateBias", SetTensor("blk.0.ffn_gate.bias", {96}), kUnimplemented,
       "tensor 'blk.0.ffn_gate.bias' is not one"},
      {"Experts", SetTensor("blk.0.ffn_gate_inp.weight", {64, 8}), kUnimplemented,
       "'blk.0.ffn_gate_inp.weight' is not"},
      {"HalfAPredictor", RemoveTensor("blk.0.pred_b.weight"), kInvalid,
       "tensor 'blk.0.pred_b.weight' is missing"},
      {"PredictorRank", SetTensor("blk.0.pred_b.weight", {17, 96}), kInvalid, "where [16, 96] is expected"},
      {"PredictorRankAbsurd", SetTensor("blk.0.pred_a.weight", {64, 161}), kInvalid,
       "where [64, 1 to 160] is expected"},
      {"PredictorBias", SetTensor("blk.0.pred_b.bias", {95}), kInvalid,
       "has shape [95] where [96] is expected"},
      {"CountsType", SetTensor("blk.0.ffn_act_counts", {96}, gguf::TensorType::kI32), kUnimplemented,
       "is of type I32"},
      {"CountsNaN",
       [](GgufBuilder& builder) {
         std::vector<float> counts(96, 1.0f);
         counts[41] = kNaN;
         builder.RemoveTensor("blk.0.ffn_act_counts").AddTensor("blk.0.ffn_act_counts", {96}, kF32, counts);
       },
       kInvalid, "'blk.0.ffn_act_counts' counts nan firings of neuron 41"},
  };
}

std::string CaseName(const ::testing::TestParamInfo<Case>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Keys, RejectionTest, ::testing::ValuesIn(KeyCases()), CaseName);
INSTANTIATE_TEST_SUITE_P(Tensors, RejectionTest, ::testing::ValuesIn(TensorCases()), CaseName);

TEST(RejectionOfDamagedModelsTest, TruncatedAtEverySixtyFourth) {
  const Bytes bytes =
      testing::TinyLlama({.type = gguf::TensorType::kQ8_0, .predictor = TinyPredictor::kPowerInfer});
  for (size_t part = 0; part < 64; ++part) {
    const Bytes cut(bytes.begin(), bytes.begin() + bytes.size() * part / 64);
    EXPECT_EQ(testing::LoadModel(cut).status().code(), kInvalid) << part << "/64";
  }
}

}  // namespace
}  // namespace isotherm::model
