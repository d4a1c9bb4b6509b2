#include "common/model/model.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/gguf/tiny_llama.h"
#include "tests/model/load.h"

namespace isotherm::model {
namespace {

using ::isotherm::testing::Bytes;
using ::isotherm::testing::LoadModel;
using ::isotherm::testing::TinyLlama;
using ::isotherm::testing::TinyLlamaBuilder;
using ::isotherm::testing::TinyLlamaOptions;
using ::isotherm::testing::TinyPredictor;

std::unique_ptr<Model> LoadOrDie(const Bytes& bytes) {
  auto model = LoadModel(bytes);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

TEST(ModelTest, ReadsHyperparameters) {
  const Bytes bytes =
      TinyLlama({.layers = 3, .hidden = 96, .ffn = 160, .heads = 6, .kv_heads = 2, .vocabulary = 300});
  const auto model = LoadOrDie(bytes);
  ASSERT_NE(model, nullptr);
  const Hyperparameters& h = model->hyperparameters();
  EXPECT_EQ(h.architecture, "llama");
  EXPECT_EQ(h.name, "tiny");
  EXPECT_EQ(h.layers, 3);
  EXPECT_EQ(h.hidden, 96);
  EXPECT_EQ(h.ffn, 160);
  EXPECT_EQ(h.heads, 6);
  EXPECT_EQ(h.kv_heads, 2);
  EXPECT_EQ(h.head_dim, 16);
  EXPECT_EQ(h.rope_dims, 16);
  EXPECT_EQ(h.vocabulary, 300);
  EXPECT_EQ(h.trained_context, 256);
  EXPECT_EQ(h.norm_epsilon, 1e-5f);
  EXPECT_EQ(h.rope_base, 10000.0f);
  EXPECT_EQ(h.rope_scaling, RopeScaling::kNone);
  EXPECT_EQ(h.rope_scale, 1.0f);
  EXPECT_EQ(model->layers().size(), 3u);
  EXPECT_EQ(model->digest(), model->file().StructureDigest());
  EXPECT_EQ(model->DisplayName(), "test");
}

TEST(ModelTest, TensorsHaveRowsAndColumns) {
  const Bytes bytes = TinyLlama();
  const auto model = LoadOrDie(bytes);
  ASSERT_NE(model, nullptr);
  const Layer& layer = model->layers()[1];
  const auto expect_shape = [](const TensorRef& tensor, const std::string& name, int64_t rows,
                               int64_t columns) {
    ASSERT_TRUE(tensor.present()) << name;
    EXPECT_EQ(tensor.info->name, name);
    EXPECT_EQ(tensor.rows, rows) << name;
    EXPECT_EQ(tensor.columns, columns) << name;
  };
  expect_shape(layer.attention_norm.weight, "blk.1.attn_norm.weight", 1, 64);
  expect_shape(layer.q.weight, "blk.1.attn_q.weight", 64, 64);
  expect_shape(layer.k.weight, "blk.1.attn_k.weight", 32, 64);
  expect_shape(layer.v.weight, "blk.1.attn_v.weight", 32, 64);
  expect_shape(layer.attention_output.weight, "blk.1.attn_output.weight", 64, 64);
  expect_shape(layer.ffn_norm.weight, "blk.1.ffn_norm.weight", 1, 64);
  expect_shape(layer.gate, "blk.1.ffn_gate.weight", 96, 64);
  expect_shape(layer.up, "blk.1.ffn_up.weight", 96, 64);
  expect_shape(layer.down, "blk.1.ffn_down.weight", 64, 96);
  expect_shape(model->token_embedding(), "token_embd.weight", 320, 64);
  expect_shape(model->output_norm().weight, "output_norm.weight", 1, 64);
  expect_shape(model->output(), "output.weight", 320, 64);
  EXPECT_FALSE(layer.down_transposed);
  EXPECT_FALSE(layer.predictor.has_value());
  EXPECT_FALSE(layer.activation_counts.present());
}

TEST(ModelTest, TiedHeadIsTheEmbedding) {
  const Bytes bytes = TinyLlama({.tied_head = true});
  const auto model = LoadOrDie(bytes);
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->output().info, model->token_embedding().info);
}

TEST(ModelTest, TransposedDownHasNeuronsAsRows) {
  const Bytes bytes = TinyLlama({.transposed_down = true});
  const auto model = LoadOrDie(bytes);
  ASSERT_NE(model, nullptr);
  EXPECT_TRUE(model->layers()[0].down_transposed);
  EXPECT_EQ(model->layers()[0].down.rows, 96);
  EXPECT_EQ(model->layers()[0].down.columns, 64);
}

TEST(ModelTest, EveryWeightTypeTheBuilderWrites) {
  for (const auto type :
       {gguf::TensorType::kF32, gguf::TensorType::kF16, gguf::TensorType::kQ8_0, gguf::TensorType::kQ4_0}) {
    const Bytes bytes = TinyLlama({.type = type});
    const auto model = LoadOrDie(bytes);
    ASSERT_NE(model, nullptr) << gguf::TensorTypeName(type);
    EXPECT_EQ(model->layers()[0].gate.info->type, type);
  }
}

TEST(ModelTest, Activations) {
  const auto load = [](const TinyLlamaOptions& options) {
    const Bytes bytes = TinyLlama(options);
    return LoadOrDie(bytes)->hyperparameters();
  };
  EXPECT_EQ(load({.activation = "relu"}).activation, Activation::kRelu);
  EXPECT_TRUE(load({.activation = "relu"}).sparse());
  EXPECT_EQ(load({.activation = "silu"}).activation, Activation::kSilu);
  EXPECT_FALSE(load({.activation = "silu"}).sparse());
  const Hyperparameters fat = load({.activation = "fatrelu", .activation_threshold = 0.25f});
  EXPECT_EQ(fat.activation, Activation::kFatRelu);
  EXPECT_EQ(fat.activation_threshold, 0.25f);
  EXPECT_TRUE(fat.sparse());
}

TEST(ModelTest, ActivationOfFilesThatDoNotSay) {
  const Bytes gguf = TinyLlama({.activation = ""});
  EXPECT_EQ(LoadOrDie(gguf)->hyperparameters().activation, Activation::kSilu);
  const Bytes powerinfer = TinyLlama({.activation = "", .predictor = TinyPredictor::kPowerInfer});
  EXPECT_EQ(LoadOrDie(powerinfer)->hyperparameters().activation, Activation::kRelu);
}

TEST(ModelTest, LinearPredictor) {
  const Bytes bytes = TinyLlama({.predictor = TinyPredictor::kLinear, .predictor_rank = 24});
  const auto model = LoadOrDie(bytes);
  ASSERT_NE(model, nullptr);
  ASSERT_TRUE(model->layers()[1].predictor.has_value());
  const LowRankPredictor& predictor = *model->layers()[1].predictor;
  EXPECT_EQ(predictor.a.rows, 24);
  EXPECT_EQ(predictor.a.columns, 64);
  EXPECT_EQ(predictor.b.rows, 96);
  EXPECT_EQ(predictor.b.columns, 24);
  EXPECT_EQ(predictor.bias.columns, 96);
  EXPECT_FALSE(predictor.relu_between);
  EXPECT_FALSE(predictor.reads_residual);
  EXPECT_EQ(predictor.threshold, 0.0f);
}

TEST(ModelTest, PredictorOfTheOtherFormWithoutBias) {
  auto builder = TinyLlamaBuilder({.layers = 1, .predictor = TinyPredictor::kLinear});
  const Bytes bytes = builder.Remove("isotherm.predictor.form")
                          .Remove("isotherm.predictor.input")
                          .Remove("isotherm.predictor.threshold")
                          .Add("isotherm.predictor.form", "relu")
                          .Add("isotherm.predictor.input", "residual")
                          .Add("isotherm.predictor.threshold", -0.5f)
                          .RemoveTensor("blk.0.pred_b.bias")
                          .Build();
  const auto model = LoadOrDie(bytes);
  ASSERT_NE(model, nullptr);
  const LowRankPredictor& predictor = *model->layers()[0].predictor;
  EXPECT_TRUE(predictor.relu_between);
  EXPECT_TRUE(predictor.reads_residual);
  EXPECT_EQ(predictor.threshold, -0.5f);
  EXPECT_FALSE(predictor.bias.present());
}

TEST(ModelTest, PowerInferPredictor) {
  const Bytes bytes = TinyLlama({.predictor = TinyPredictor::kPowerInfer, .predictor_rank = 32});
  const auto model = LoadOrDie(bytes);
  ASSERT_NE(model, nullptr);
  EXPECT_TRUE(model->file().is_powerinfer());
  EXPECT_TRUE(model->layers()[0].down_transposed);
  ASSERT_TRUE(model->layers()[0].predictor.has_value());
  const LowRankPredictor& predictor = *model->layers()[0].predictor;
  EXPECT_EQ(predictor.a.info->name, "blk.0.fc1.weight");
  EXPECT_EQ(predictor.a.rows, 32);
  EXPECT_EQ(predictor.b.columns, 32);
  EXPECT_FALSE(predictor.bias.present());
  EXPECT_TRUE(predictor.relu_between);
  EXPECT_TRUE(predictor.reads_residual);
}

TEST(ModelTest, ActivationCounts) {
  const Bytes bytes = TinyLlama({.activation_counts = true});
  const auto model = LoadOrDie(bytes);
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->layers()[1].activation_counts.columns, 96);
  EXPECT_EQ(model->profile_tokens(), 1000);
}

TEST(ModelTest, HeadsMayBeWiderThanTheHiddenSizeGives) {
  auto builder = TinyLlamaBuilder({.layers = 1, .hidden = 64, .heads = 4, .kv_heads = 4});
  const auto type = gguf::TensorType::kF32;
  for (const char* name : {"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"}) {
    builder.RemoveTensor(name).AddTensor(name, {64, 128}, type, std::vector<float>(64 * 128));
  }
  builder.RemoveTensor("blk.0.attn_output.weight")
      .AddTensor("blk.0.attn_output.weight", {128, 64}, type, std::vector<float>(64 * 128))
      .Add<uint32_t>("llama.attention.key_length", 32)
      .Add<uint32_t>("llama.attention.value_length", 32);
  const Bytes bytes = builder.Build();
  const auto model = LoadOrDie(bytes);
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->hyperparameters().head_dim, 32);
  EXPECT_EQ(model->hyperparameters().rope_dims, 16) << "the key llama.rope.dimension_count says so";
}

TEST(ModelTest, RopeScaling) {
  const auto load = [](const std::function<void(testing::GgufBuilder&)>& change) {
    auto builder = TinyLlamaBuilder({.layers = 1});
    change(builder);
    const Bytes bytes = builder.Build();
    return LoadOrDie(bytes)->hyperparameters();
  };
  const Hyperparameters linear = load([](auto& builder) {
    builder.Add("llama.rope.scaling.type", "linear").Add("llama.rope.scaling.factor", 4.0f);
  });
  EXPECT_EQ(linear.rope_scaling, RopeScaling::kLinear);
  EXPECT_EQ(linear.rope_scale, 4.0f);
  const Hyperparameters old = load([](auto& builder) { builder.Add("llama.rope.scale_linear", 2.0f); });
  EXPECT_EQ(old.rope_scaling, RopeScaling::kLinear);
  EXPECT_EQ(old.rope_scale, 2.0f);
  const Hyperparameters none = load([](auto& builder) {
    builder.Add("llama.rope.scaling.type", "none").Add("llama.rope.scaling.factor", 4.0f);
  });
  EXPECT_EQ(none.rope_scaling, RopeScaling::kNone);
  EXPECT_EQ(none.rope_scale, 1.0f);
}

TEST(ModelTest, OpensFromDisk) {
  const std::string path = ::testing::TempDir() + std::to_string(getpid()) + "-tales.v2.gguf";
  testing::WriteFile(path, TinyLlama());
  const auto model = Model::Open(path);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->DisplayName(), std::to_string(getpid()) + "-tales.v2");
  unlink(path.c_str());
}

}  // namespace
}  // namespace isotherm::model
