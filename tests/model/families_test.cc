// What the families beyond Llama make of their files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>

#include "tests/gguf/fixture.h"
#include "tests/gguf/tiny_llama.h"
#include "tests/model/load.h"

namespace isotherm::model {
namespace {

using ::isotherm::testing::Bytes;
using ::isotherm::testing::GgufBuilder;
using ::isotherm::testing::TinyLlama;
using ::isotherm::testing::TinyLlamaBuilder;
using ::testing::HasSubstr;

constexpr gguf::TensorType kF32 = gguf::TensorType::kF32;

std::unique_ptr<Model> OpenFixture(const std::string& name) {
  auto model = Model::Open(testing::FixturePath(name + ".gguf"));
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

TEST(FamiliesTest, ActivationsOfFilesThatNameNone) {
  const struct {
    const char* fixture;
    Activation activation;
    bool gated, sparse;
  } cases[] = {{"llama3-silu-f32", Activation::kSilu, true, false},
               {"qwen2-silu-f32", Activation::kSilu, true, false},
               {"bamboo-drelu-f32", Activation::kDRelu, true, true},
               {"bamboo-powerinfer-q4_0", Activation::kDRelu, true, true},
               {"arcee-relu2-f32", Activation::kRelu2, false, true},
               {"nemotron-relu2-f32", Activation::kRelu2, false, true},
               {"falcon7b-gelu-f16", Activation::kGelu, false, false},
               {"falcon40b-powerinfer-f16", Activation::kRelu, false, true},
               {"opt-relu-f32", Activation::kRelu, false, true}};
  for (const auto& [fixture, activation, gated, sparse] : cases) {
    const auto model = OpenFixture(fixture);
    ASSERT_NE(model, nullptr);
    const Hyperparameters& h = model->hyperparameters();
    EXPECT_EQ(h.activation, activation) << fixture;
    EXPECT_EQ(h.gated, gated) << fixture;
    EXPECT_EQ(h.sparse(), sparse) << fixture;
    EXPECT_EQ(model->layers().front().gate.present(), gated) << fixture;
    EXPECT_EQ(model->layers().front().activated().info->name,
              gated ? "blk.0.ffn_gate.weight" : "blk.0.ffn_up.weight");
  }
}

TEST(FamiliesTest, OptHasLearnedPositionsAndBiases) {
  const auto model = OpenFixture("opt-powerinfer-f16");
  ASSERT_NE(model, nullptr);
  const Hyperparameters& h = model->hyperparameters();
  EXPECT_EQ(h.norm, NormKind::kLayer);
  EXPECT_EQ(h.norm_epsilon, 1e-5f) << "the file does not say";
  EXPECT_EQ(h.rope_dims, 0);
  EXPECT_EQ(h.position_offset, 2);
  EXPECT_EQ(model->position_embedding().rows, 66);
  EXPECT_EQ(h.trained_context, 64) << "the file says 66, which counts the rows of no position";
  EXPECT_EQ(model->output().info, model->token_embedding().info);
  const Layer& layer = model->layers()[1];
  for (const Affine& pair :
       {layer.attention_norm, layer.q, layer.k, layer.v, layer.attention_output, layer.ffn_norm}) {
    EXPECT_TRUE(pair.weight.present() && pair.bias.present()) << pair.weight.info->name;
  }
  EXPECT_EQ(layer.up_bias.info->name, "blk.1.ffn_up.bias");
  EXPECT_EQ(layer.down_bias.info->name, "blk.1.ffn_down_t.bias");
  EXPECT_TRUE(layer.predictor.has_value());
}

TEST(FamiliesTest, FalconDividesItsFusedAttention) {
  const auto small = OpenFixture("falcon7b-relu-f32");
  const auto large = OpenFixture("falcon40b-relu-f32");
  ASSERT_TRUE(small != nullptr && large != nullptr);
  EXPECT_TRUE(small->hyperparameters().parallel_attention);
  EXPECT_EQ(small->hyperparameters().rope_pairs, RopePairs::kHalves);
  EXPECT_EQ(small->hyperparameters().kv_heads, 1);
  EXPECT_EQ(small->layers()[0].attention_norm.weight.info, small->layers()[0].ffn_norm.weight.info);
  const Layer& layer = large->layers()[0];
  EXPECT_EQ(layer.attention_norm.weight.info->name, "blk.0.attn_norm_2.weight");
  EXPECT_EQ(layer.ffn_norm.weight.info->name, "blk.0.attn_norm.weight");
  const int64_t first_rows[] = {0, 64, 96}, rows[] = {64, 32, 32};
  const TensorRef* parts[] = {&layer.q.weight, &layer.k.weight, &layer.v.weight};
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(parts[i]->info->name, "blk.0.attn_qkv.weight");
    EXPECT_EQ(parts[i]->first_row, first_rows[i]);
    EXPECT_EQ(parts[i]->rows, rows[i]);
  }
}

TEST(FamiliesTest, NemotronRotatesHalfOfEachHead) {
  const auto model = OpenFixture("nemotron-relu2-f32");
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->hyperparameters().head_dim, 16);
  EXPECT_EQ(model->hyperparameters().rope_dims, 8);
}

TEST(FamiliesTest, Llama3HasRopeFactors) {
  const auto model = OpenFixture("llama3-silu-f32");
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->rope_factors().columns, 8);
}

TEST(FamiliesTest, MiniCpmScales) {
  const auto named = OpenFixture("minicpm-relu-q4_0");
  ASSERT_NE(named, nullptr);
  EXPECT_EQ(named->hyperparameters().embedding_scale, 3.0f);
  EXPECT_FLOAT_EQ(named->hyperparameters().residual_scale, static_cast<float>(1.4 / std::sqrt(2.0)));
  EXPECT_FLOAT_EQ(named->hyperparameters().logit_scale, 24.0f / 64);
  const Bytes bytes = TinyLlama({.layers = 4, .hidden = 128, .architecture = "minicpm"});
  const auto old = testing::LoadModel(bytes);
  ASSERT_TRUE(old.ok()) << old.status();
  EXPECT_EQ((*old)->hyperparameters().embedding_scale, 12.0f);
  EXPECT_FLOAT_EQ((*old)->hyperparameters().residual_scale, 0.7f);
  EXPECT_FLOAT_EQ((*old)->hyperparameters().logit_scale, 2.0f);
}

TEST(FamiliesTest, MistralIsALlamaUnderItsOwnKeys) {
  const Bytes bytes = TinyLlama({.activation = "drelu", .architecture = "mistral"});
  const auto model = testing::LoadModel(bytes);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->hyperparameters().architecture, "mistral");
  EXPECT_EQ((*model)->hyperparameters().activation, Activation::kDRelu);
}

TEST(FamiliesTest, FaultsAreNamed) {
  const auto builder = [](const std::string& architecture, const std::string& activation) {
    GgufBuilder built =
        TinyLlamaBuilder({.layers = 1, .activation = activation, .architecture = architecture});
    built.Add(architecture + ".attention.layer_norm_epsilon", 1e-5f);
    return built;
  };
  const struct {
    Bytes bytes;
    const char* message;
  } cases[] = {
      {builder("falcon", "drelu").Build(), "is 'drelu', which needs a gated FFN"},
      {builder("falcon", "relu").Build(), "tensor 'blk.0.attn_qkv.weight' is missing"},
      {builder("opt", "relu").Build(), "tensor 'position_embd.weight' is missing"},
      {builder("opt", "relu")
           .AddTensor("position_embd.weight", {64, 2}, kF32, std::vector<float>(128))
           .Build(),
       "has 2 rows, and the first 2 are of no position"},
      {builder("arcee", "").Build(), "'blk.0.ffn_gate.weight' is not one this architecture is known to have"},
      {builder("minicpm", "relu").Add("minicpm.logit_scale", 0.0f).Build(), "'minicpm.logit_scale' is 0"},
  };
  for (const auto& [bytes, message] : cases) {
    const absl::Status status = testing::LoadModel(bytes).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

}  // namespace
}  // namespace isotherm::model
