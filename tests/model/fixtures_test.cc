// The reference models, written by another implementation of the format, open with the hyperparameters they
// were made of.
#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "common/model/model.h"
#include "tests/gguf/fixture.h"

namespace isotherm::model {
namespace {

using gguf::TensorType;

struct Fixture {
  std::string name;
  int64_t layers, hidden, ffn, kv_heads;
  TensorType type;
  Activation activation;
  bool tied = false;
  float rope_base = 10000;
  float rope_scale = 1;
  int64_t predictor_rank = 0;
};

void PrintTo(const Fixture& fixture, std::ostream* out) { *out << fixture.name; }

class FixtureTest : public ::testing::TestWithParam<Fixture> {};

TEST_P(FixtureTest, Opens) {
  const Fixture& fixture = GetParam();
  auto opened = Model::Open(testing::FixturePath(fixture.name + ".gguf"));
  ASSERT_TRUE(opened.ok()) << opened.status();
  const Model& model = **opened;
  const Hyperparameters& h = model.hyperparameters();
  EXPECT_EQ(model.DisplayName(), fixture.name);
  EXPECT_EQ(h.name, fixture.name);
  EXPECT_EQ(h.layers, fixture.layers);
  EXPECT_EQ(h.hidden, fixture.hidden);
  EXPECT_EQ(h.ffn, fixture.ffn);
  EXPECT_EQ(h.heads, 4);
  EXPECT_EQ(h.kv_heads, fixture.kv_heads);
  EXPECT_EQ(h.head_dim, fixture.hidden / 4);
  EXPECT_EQ(h.rope_dims, h.head_dim);
  EXPECT_EQ(h.vocabulary, 320);
  EXPECT_EQ(h.trained_context, 256);
  EXPECT_EQ(h.norm_epsilon, 1e-5f);
  EXPECT_EQ(h.activation, fixture.activation);
  EXPECT_EQ(h.rope_base, fixture.rope_base);
  EXPECT_EQ(h.rope_scale, fixture.rope_scale);
  EXPECT_EQ(h.rope_scaling, fixture.rope_scale == 1 ? RopeScaling::kNone : RopeScaling::kLinear);
  EXPECT_EQ(model.output().info == model.token_embedding().info, fixture.tied);
  for (const Layer& layer : model.layers()) {
    EXPECT_EQ(layer.gate.info->type, fixture.type);
    EXPECT_EQ(layer.down_transposed, fixture.predictor_rank > 0);
    ASSERT_EQ(layer.predictor.has_value(), fixture.predictor_rank > 0);
    if (layer.predictor) {
      EXPECT_EQ(layer.predictor->a.rows, fixture.predictor_rank);
    }
  }
}

constexpr auto kRelu = Activation::kRelu;
constexpr auto kSilu = Activation::kSilu;

INSTANTIATE_TEST_SUITE_P(All, FixtureTest,
                         ::testing::Values(Fixture{"mha-relu-f32", 2, 64, 192, 4, TensorType::kF32, kRelu},
                                           Fixture{"gqa-silu-f32", 1, 64, 192, 2, TensorType::kF32, kSilu},
                                           Fixture{"gqa-relu-f16", 1, 128, 256, 1, TensorType::kF16, kRelu},
                                           Fixture{"mha-silu-f16", 1, 64, 192, 4, TensorType::kF16, kSilu},
                                           Fixture{"mha-relu-q8_0", 2, 64, 192, 4, TensorType::kQ8_0, kRelu},
                                           Fixture{"gqa-silu-q8_0", 1, 128, 256, 1, TensorType::kQ8_0, kSilu},
                                           Fixture{"gqa-relu-q4_0", 3, 64, 192, 2, TensorType::kQ4_0, kRelu},
                                           Fixture{"mha-silu-q4_0", 2, 64, 192, 4, TensorType::kQ4_0, kSilu},
                                           Fixture{"rope-base-f32", 1, 64, 192, 2, TensorType::kF32, kRelu,
                                                   /*tied=*/true, /*rope_base=*/500000},
                                           Fixture{"rope-linear-f32", 1, 64, 192, 2, TensorType::kF32, kRelu,
                                                   true, 10000, /*rope_scale=*/2},
                                           Fixture{"tied-relu-q8_0", 3, 64, 192, 2, TensorType::kQ8_0, kRelu,
                                                   true},
                                           Fixture{"powerinfer-relu-q8_0", 1, 64, 192, 4, TensorType::kQ8_0,
                                                   kRelu, false, 10000, 1, /*rank=*/128},
                                           Fixture{"powerinfer-rank48-f32", 1, 64, 192, 2, TensorType::kF32,
                                                   kRelu, true, 10000, 1, /*rank=*/48}),
                         [](const ::testing::TestParamInfo<Fixture>& info) {
                           std::string name = info.param.name;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace isotherm::model
