#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/gguf/tiny_llama.h"
#include "tests/gpu_worker/runner_harness.h"
#include "tests/kernels/test_support.h"

namespace isotherm::gpu_worker {
namespace {

// Random blocks in place of a tensor, or the values they stand for in F32.
void ReplaceTensor(testing::GgufBuilder& builder, const std::string& name, int64_t rows, int64_t columns,
                   kernels::WeightType type, gguf::TensorType file_type, bool as_f32) {
  const testing::Bytes blocks = kernels::RandomFileRow(type, rows * columns, 5);
  const std::vector<uint64_t> dims = {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)};
  builder.RemoveTensor(name);
  if (as_f32) {
    std::vector<float> values(rows * columns);
    kernels::UnpackFileRow(type, blocks.data(), rows * columns, values.data());
    builder.AddTensor(name, dims, gguf::TensorType::kF32, values);
  } else {
    builder.AddTensor(name, dims, file_type, blocks);
  }
}

// PowerInfer's Q4_0 files have an output of Q6_K and, from some versions of its quantiser, predictors of
// Q5_0. On device `host` all types decode to the same F32 weights in the same order, so the logits
// are equal.
TEST(MixedTypesTest, PowerInfersMixOfTypesComputesWhatItsWeightsSay) {
  testing::TinyLlamaOptions tiny;
  tiny.type = gguf::TensorType::kQ4_0;
  tiny.hidden = 256;
  tiny.predictor = testing::TinyPredictor::kPowerInfer;
  tiny.predictor_rank = 32;
  HarnessOptions options;
  options.predictor = PredictorKind::kLowRank;
  std::vector<std::vector<float>> logits[2];
  for (const bool as_f32 : {false, true}) {
    testing::GgufBuilder builder = testing::TinyLlamaBuilder(tiny);
    using gguf::TensorType;
    using kernels::WeightType;
    ReplaceTensor(builder, "output.weight", tiny.vocabulary, tiny.hidden, WeightType::kQ6_K,
                  TensorType::kQ6_K, as_f32);
    for (int64_t layer = 0; layer < tiny.layers; ++layer) {
      const std::string prefix = absl::StrCat("blk.", layer, ".");
      ReplaceTensor(builder, prefix + "fc1.weight", tiny.predictor_rank, tiny.hidden, WeightType::kQ5_0,
                    TensorType::kQ5_0, as_f32);
      ReplaceTensor(builder, prefix + "fc2.weight", tiny.ffn, tiny.predictor_rank, WeightType::kQ5_0,
                    TensorType::kQ5_0, as_f32);
    }
    const testing::Bytes bytes = builder.Build();
    auto file = gguf::File::Parse(bytes, "mixed.gguf");
    ASSERT_TRUE(file.ok()) << file.status();
    auto model = model::Model::FromFile(*std::move(file));
    ASSERT_TRUE(model.ok()) << model.status();
    const auto harness = RunnerHarness::Create(*std::move(model), options);
    ASSERT_TRUE(harness.ok()) << harness.status();
    const auto all = (*harness)->DecodeAll(0, {3, 80, 200, 17, 101, 250});
    ASSERT_TRUE(all.ok()) << all.status();
    logits[as_f32] = *all;
  }
  EXPECT_EQ(logits[0], logits[1]);
  EXPECT_NE(logits[0].front(), logits[0].back());
}

}  // namespace
}  // namespace isotherm::gpu_worker
