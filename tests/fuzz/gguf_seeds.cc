// gguf_seeds FOLDER: writes small valid files that between them reach every part of the reader and the model
// loader.
#include <cstdio>
#include <string>
#include <vector>

#include "tests/gguf/gguf_builder.h"
#include "tests/gguf/tiny_llama.h"

namespace isotherm::testing {
namespace {

using gguf::TensorType;

// About 10 KiB: mutation works best on small files.
TinyLlamaOptions Smallest() {
  return {.layers = 1,
          .hidden = 32,
          .ffn = 32,
          .heads = 2,
          .kv_heads = 1,
          .vocabulary = 259,
          .type = TensorType::kQ4_0,
          .tied_head = true,
          .predictor_rank = 2};
}

Bytes EveryKindOfMetadata() {
  return GgufBuilder()
      .SetVersion(2)
      .SetAlignment(64)
      .Add<uint32_t>("general.alignment", 64)
      .Add<uint8_t>("u8", 1)
      .Add<int8_t>("i8", -1)
      .Add<uint16_t>("u16", 2)
      .Add<int16_t>("i16", -2)
      .Add<int32_t>("i32", -3)
      .Add<uint64_t>("u64", 4)
      .Add<int64_t>("i64", -4)
      .Add("f32", 0.5f)
      .Add("f64", 0.25)
      .Add("bool", true)
      .Add("string", "text")
      .AddArray("strings", std::vector<std::string>{"a", "", "\xe2\x96\x81the"})
      .AddArray("floats", std::vector<float>{1, 2, 3})
      .AddArray("ints", std::vector<int64_t>{1, 2, 3})
      .AddTensor("vector", {3}, TensorType::kF32, std::vector<float>{1, 2, 3})
      .AddTensor("four", {2, 1, 2, 1}, TensorType::kF16, std::vector<float>(4))
      .AddTensor("blocks", {256, 1}, TensorType::kQ6_K, Bytes(210))
      .Build();
}

void WriteSeeds(const std::string& folder) {
  const auto write = [&](const std::string& name, const Bytes& bytes) {
    WriteFile(folder + "/" + name, bytes);
  };
  write("metadata.gguf", EveryKindOfMetadata());

  TinyLlamaOptions options = Smallest();
  write("relu.gguf", TinyLlama(options));

  options.activation = "fatrelu";
  options.predictor = TinyPredictor::kLinear;
  options.activation_counts = true;
  write("linear-predictor.gguf", TinyLlama(options));

  options = Smallest();
  options.predictor = TinyPredictor::kPowerInfer;
  write("powerinfer.gguf", TinyLlama(options));

  options = Smallest();
  options.activation = "";
  options.tied_head = false;
  options.layers = 2;
  write("silu-rope-linear.gguf", TinyLlamaBuilder(options)
                                     .Add("llama.rope.scaling.type", "linear")
                                     .Add("llama.rope.scaling.factor", 2.0f)
                                     .Add<uint32_t>("llama.attention.key_length", 16)
                                     .Add<uint32_t>("llama.attention.value_length", 16)
                                     .Build());
}

}  // namespace
}  // namespace isotherm::testing

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: gguf_seeds FOLDER\n");
    return 2;
  }
  isotherm::testing::WriteSeeds(argv[1]);
  return 0;
}
