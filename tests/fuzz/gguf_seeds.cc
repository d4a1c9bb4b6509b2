// gguf_seeds FOLDER: writes small valid files that between them reach every part of the reader and the model
// loader.
#include <cstdio>
#include <string>
#include <utility>
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

// A layer-norm model of one ungated layer with biases and every weight zero; about 10 KiB.
class UngatedWriter {
 public:
  explicit UngatedWriter(const std::string& architecture) {
    builder_.Add("general.architecture", architecture).Add(architecture + ".context_length", uint32_t{16});
    for (const auto& [key, value] : {std::pair<const char*, uint32_t>{"embedding_length", kHidden},
                                     {"block_count", 1},
                                     {"feed_forward_length", kFfn},
                                     {"attention.head_count", 2},
                                     {"attention.head_count_kv", 2}}) {
      builder_.Add(architecture + "." + key, value);
    }
    builder_.Add(architecture + ".attention.layer_norm_epsilon", 1e-5f);
    AddMatrix("token_embd.weight", 32, kHidden);
    AddAffine("blk.0.attn_output", kHidden, kHidden);
    AddAffine("blk.0.ffn_down", kHidden, kFfn);
    AddNorm("blk.0.attn_norm");
    AddNorm("output_norm");
  }

  Bytes Opt() {
    AddMatrix("position_embd.weight", 18, kHidden);
    for (const char* name : {"blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"})
      AddAffine(name, kHidden, kHidden);
    AddAffine("blk.0.ffn_up", kFfn, kHidden);
    AddNorm("blk.0.ffn_norm");
    return builder_.Build();
  }

  Bytes Falcon() {
    builder_.RemoveTensor("blk.0.attn_output.bias");
    AddMatrix("blk.0.attn_qkv.weight", 3 * kHidden, kHidden);
    AddMatrix("blk.0.ffn_up.weight", kFfn, kHidden);
    AddNorm("blk.0.attn_norm_2");
    return builder_.Build();
  }

 private:
  static constexpr uint64_t kHidden = 32, kFfn = 32;

  void AddMatrix(const std::string& name, uint64_t rows, uint64_t columns) {
    builder_.AddTensor(name, {columns, rows}, TensorType::kQ4_0, std::vector<float>(rows * columns));
  }
  void AddVector(const std::string& name, uint64_t size) {
    builder_.AddTensor(name, {size}, TensorType::kF32, std::vector<float>(size));
  }
  void AddAffine(const std::string& name, uint64_t rows, uint64_t columns) {
    AddMatrix(name + ".weight", rows, columns);
    AddVector(name + ".bias", rows);
  }
  void AddNorm(const std::string& name) {
    AddVector(name + ".weight", kHidden);
    AddVector(name + ".bias", kHidden);
  }

  GgufBuilder builder_;
};

Bytes FirstShard() {
  return GgufBuilder()
      .Add<uint16_t>("split.no", 0)
      .Add<uint16_t>("split.count", 2)
      .Add<int32_t>("split.tensors.count", 2)
      .AddTensor("vector", {3}, TensorType::kF32, std::vector<float>{1, 2, 3})
      .Build();
}

void WriteSeeds(const std::string& folder) {
  const auto write = [&](const std::string& name, const Bytes& bytes) {
    WriteFile(folder + "/" + name, bytes);
  };
  write("metadata.gguf", EveryKindOfMetadata());
  write("split.gguf", FirstShard());

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

  options = Smallest();
  options.architecture = "minicpm";
  write("minicpm-rope-factors.gguf",
        TinyLlamaBuilder(options)
            .Add("minicpm.residual_scale", 0.5f)
            .AddTensor("rope_freqs.weight", {8}, TensorType::kF32, std::vector<float>(8, 2.0f))
            .Build());
  write("opt.gguf", UngatedWriter("opt").Opt());
  write("falcon.gguf", UngatedWriter("falcon").Falcon());
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
