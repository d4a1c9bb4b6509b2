#include "tools/cli/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <sstream>
#include <string>

#include "absl/status/status.h"
#include "common/base/file.h"
#include "common/model/profile.h"
#include "tests/gguf/tiny_llama.h"
#include "tools/cli/inspect_model.h"

namespace isotherm::cli {
namespace {

using ::isotherm::testing::Bytes;
using ::isotherm::testing::GgufBuilder;
using ::isotherm::testing::TinyLlama;
using ::isotherm::testing::TinyLlamaOptions;
using ::isotherm::testing::TinyPredictor;
using ::testing::HasSubstr;
using ::testing::Not;

class InspectTest : public ::testing::Test {
 protected:
  ~InspectTest() override { unlink(path_.c_str()); }

  // The text, or the status where there is an error.
  std::string Run(const Bytes& bytes, InspectOptions options = {}) {
    options.path = testing::WriteFile(path_, bytes);
    std::ostringstream out;
    status_ = Inspect(options, out);
    return out.str();
  }

  const std::string path_ = ::testing::TempDir() + std::to_string(getpid()) + "-inspect.gguf";
  absl::Status status_;
};

TEST_F(InspectTest, ShowsMetadataTensorsAndHyperparameters) {
  const std::string text = Run(TinyLlama({.layers = 3, .type = gguf::TensorType::kQ8_0}));
  ASSERT_TRUE(status_.ok()) << status_;
  EXPECT_THAT(text, HasSubstr(path_ + ": GGUF version 3, "));
  EXPECT_THAT(text, HasSubstr("  llama.embedding_length                     64\n"));
  EXPECT_THAT(text, HasSubstr("  tokenizer.ggml.tokens                      [320 strings]\n"));
  EXPECT_THAT(text, HasSubstr("  outside of the layers, "));
  EXPECT_THAT(text,
              HasSubstr("    token_embd.weight            Q8_0     [64, 320]                21.2 KiB\n"));
  EXPECT_THAT(text, HasSubstr("  layers 0 to 2, each 32.4 KiB\n"));
  EXPECT_THAT(text,
              HasSubstr("    ffn_down.weight              Q8_0     [96, 64]                 6.38 KiB\n"));
  EXPECT_THAT(text, Not(HasSubstr("blk."))) << "equal layers are listed once";
  EXPECT_THAT(text, HasSubstr("  FFN                96 neurons a layer, relu, sparse\n"));
  EXPECT_THAT(text, HasSubstr("  attention          4 heads of 16, 2 for keys and values\n"));
  EXPECT_THAT(text, HasSubstr("has no firing counts"));
  EXPECT_THAT(text, Not(HasSubstr("of GPU memory")));
}

TEST_F(InspectTest, LayersThatDifferAreListedApart) {
  auto builder = testing::TinyLlamaBuilder({.layers = 4});
  builder.RemoveTensor("blk.1.ffn_gate.weight")
      .AddTensor("blk.1.ffn_gate.weight", {64, 96}, gguf::TensorType::kF16, std::vector<float>(64 * 96));
  const std::string text = Run(builder.Build());
  EXPECT_THAT(text, HasSubstr("\n  layer 0, "));
  EXPECT_THAT(text, HasSubstr("\n  layer 1, "));
  EXPECT_THAT(text, HasSubstr("\n  layers 2 to 3, each "));
}

TEST_F(InspectTest, BytesByPurpose) {
  const std::string text = Run(TinyLlama({.layers = 1,
                                          .hidden = 64,
                                          .ffn = 128,
                                          .heads = 4,
                                          .kv_heads = 4,
                                          .tied_head = true,
                                          .predictor = TinyPredictor::kLinear,
                                          .predictor_rank = 16,
                                          .activation_counts = true}));
  EXPECT_THAT(text, HasSubstr("  attention              64.0 KiB   "));  // 4 * 64 * 64 * 4
  EXPECT_THAT(text, HasSubstr("  FFN                    96.0 KiB   "));  // 3 * 64 * 128 * 4
  EXPECT_THAT(text, HasSubstr("  embedding              80.0 KiB   "));  // 320 * 64 * 4
  EXPECT_THAT(text, HasSubstr("  head                        0 B    0.0 %   (tied to the embedding)\n"));
  EXPECT_THAT(text, HasSubstr("  predictor              12.5 KiB   "));  // (16 * 64 + 128 * 16 + 128) * 4
  EXPECT_THAT(text, HasSubstr("  norms                     768 B   "));  // 3 * 64 * 4
  EXPECT_THAT(text, HasSubstr("  firing counts             512 B   "));
  EXPECT_THAT(text, HasSubstr("  predictor          rank 16, linear, reads the FFN input, threshold 0\n"));
}

TEST_F(InspectTest, FiringsOfTheMostUsedNeurons) {
  auto builder = testing::TinyLlamaBuilder({.layers = 1, .ffn = 32, .activation_counts = true});
  // In no order: 3 neurons fire 200 times each, 13 fire 20 times, 16 never.
  std::vector<float> counts(32, 0.0f);
  for (int j = 0; j < 13; ++j) counts[2 * j] = 20;
  counts[5] = counts[17] = counts[31] = 200;
  builder.RemoveTensor("blk.0.ffn_act_counts")
      .AddTensor("blk.0.ffn_act_counts", {32}, gguf::TensorType::kF32, counts);
  const std::string text = Run(builder.Build());
  EXPECT_THAT(text, HasSubstr("Firings in 1000 tokens"));
  // Active: 860 / (1000 * 32). Top 3.2, 6.4, 9.6 and 16 neurons: 604, 668, 732 and 860 of 860.
  EXPECT_THAT(text, HasSubstr("      0    2.7 %    70.2 %    77.7 %    85.1 %   100.0 %\n"));
  EXPECT_THAT(text, HasSubstr("  * all layers            70.2 %    77.7 %    85.1 %   100.0 %\n"));
}

TEST_F(InspectTest, AProfileBesideTheModelComesBeforeTheCountsInIt) {
  const Bytes bytes = TinyLlama({.layers = 2, .activation_counts = true});
  const auto model = model::Model::Open(testing::WriteFile(path_, bytes));
  ASSERT_TRUE(model.ok()) << model.status();
  const std::string beside = model::ProfilePath(**model);
  const std::vector<std::vector<double>> counts(2, std::vector<double>(96, 1));
  ASSERT_TRUE(model::WriteProfile({96, counts, "a text", false}, **model, beside).ok());
  EXPECT_THAT(Run(bytes), HasSubstr("Firings in 96 tokens, from a text"));
  EXPECT_THAT(Run(TinyLlama({.layers = 2, .seed = 9})), HasSubstr("Ignored: " + beside));
  EXPECT_THAT(Run(bytes, {.profile_path = path_}), Not(HasSubstr("Firings in")));
  EXPECT_EQ(status_.code(), absl::StatusCode::kInvalidArgument);
  unlink(beside.c_str());
}

TEST_F(InspectTest, WritesThePlot) {
  const std::string plot = path_ + ".svg";
  Run(TinyLlama({.activation_counts = true}), {.plot_path = plot});
  ASSERT_TRUE(status_.ok()) << status_;
  const absl::StatusOr<std::string> svg = base::ReadSmallFile(plot);
  ASSERT_TRUE(svg.ok());
  EXPECT_THAT(*svg, HasSubstr("</svg>"));
  unlink(plot.c_str());
  Run(TinyLlama({.activation_counts = true}), {.plot_path = "/nonexistent/plot.svg"});
  EXPECT_THAT(status_.ToString(), HasSubstr("/nonexistent/plot.svg"));
  Run(TinyLlama({}), {.plot_path = plot});
  EXPECT_THAT(status_.ToString(), HasSubstr("nothing to plot"));
}

TEST_F(InspectTest, DenseModelsHaveNoFirings) {
  const std::string text = Run(TinyLlama({.activation = "silu"}));
  EXPECT_THAT(text, HasSubstr("silu, dense: every neuron is computed"));
  EXPECT_THAT(text, Not(HasSubstr("firing counts;")));
}

TEST_F(InspectTest, PowerInferFiles) {
  const std::string text = Run(TinyLlama({.predictor = TinyPredictor::kPowerInfer, .predictor_rank = 32}));
  EXPECT_THAT(text, HasSubstr(": PowerInfer GGUF version 3, "));
  EXPECT_THAT(
      text,
      HasSubstr("  predictor          rank 32, with a ReLU between, reads the residual, threshold 0\n"));
}

const TinyLlamaOptions kProfiled = {
    .layers = 2, .hidden = 64, .ffn = 96, .context = 256, .activation_counts = true};

TEST_F(InspectTest, PlansForABudget) {
  // Attention 2 * 48 KiB and norms 1.25 KiB, embedding and head 160 KiB, KV cache 256 * 2 * 2 * 32 * 2 = 64
  // KiB, a sketch of 2 * 96 rows in lines of 64 bytes, 60 KiB: 381.25 KiB. A neuron is 3 * 256 bytes, all of
  // them 144 KiB: half of them fit.
  const std::string text = Run(TinyLlama(kProfiled), {.vram_budget_bytes = 453 * 1024 + 512});
  ASSERT_TRUE(status_.ok()) << status_;
  EXPECT_THAT(text, HasSubstr("  attention                  97.2 KiB\n"));
  EXPECT_THAT(text, HasSubstr("  embedding and head          160 KiB\n"));
  EXPECT_THAT(text, HasSubstr("  KV cache, 256 tokens       64.0 KiB\n"));
  EXPECT_THAT(text, HasSubstr("  predictor 'sketch'         60.0 KiB\n"));
  EXPECT_THAT(text, HasSubstr("   96 of 192 (50.0 %)\n"));
  EXPECT_THAT(text, HasSubstr("firings that are hot"));
}

TEST_F(InspectTest, PlansForEverything) {
  const std::string text = Run(TinyLlama(kProfiled), {.vram_budget_bytes = 1 << 20, .kv_tokens = 16});
  EXPECT_THAT(text, HasSubstr("  KV cache, 16 tokens        4.00 KiB\n"));
  EXPECT_THAT(text, HasSubstr("   192 of 192 (100.0 %)\n"));
  EXPECT_THAT(text, HasSubstr("      1         96          0   100.0 %\n"));
}

TEST_F(InspectTest, TooSmallABudgetNamesTheLeastThatWouldDo) {
  const std::string text = Run(TinyLlama(kProfiled), {.vram_budget_bytes = 100 * 1024});
  EXPECT_EQ(status_.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status_.message()), HasSubstr("need 381 KiB before the first hot neuron"));
  EXPECT_THAT(text, HasSubstr("Bytes by purpose")) << "what can be said is said";
}

TEST_F(InspectTest, FilesThatAreNoModelAreStillDescribed) {
  const Bytes vocabulary = GgufBuilder().Add("general.architecture", "mamba").Build();
  const std::string text = Run(vocabulary);
  EXPECT_TRUE(status_.ok()) << status_;
  EXPECT_THAT(text, HasSubstr("\"mamba\""));
  EXPECT_THAT(text, HasSubstr("Isotherm cannot run this file: "));
  Run(vocabulary, {.vram_budget_bytes = 1 << 30});
  EXPECT_EQ(status_.code(), absl::StatusCode::kUnimplemented);
}

TEST_F(InspectTest, UnreadableFiles) {
  std::ostringstream out;
  EXPECT_EQ(Inspect({.path = "/nonexistent.gguf"}, out).code(), absl::StatusCode::kNotFound);
  Run({1, 2, 3});
  EXPECT_EQ(status_.code(), absl::StatusCode::kInvalidArgument);
}

TEST(FormatBytesTest, ThreeDigits) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1024), "1.00 KiB");
  EXPECT_EQ(FormatBytes(10 * 1024 + 512), "10.5 KiB");
  EXPECT_EQ(FormatBytes(uint64_t{1} << 30), "1.00 GiB");
  EXPECT_EQ(FormatBytes(uint64_t{1} << 52), "4096 TiB");
}

}  // namespace
}  // namespace isotherm::cli
