#ifndef ISOTHERM_TESTS_GGUF_TINY_LLAMA_H_
#define ISOTHERM_TESTS_GGUF_TINY_LLAMA_H_

#include <cstdint>
#include <string>

#include "common/gguf/file.h"
#include "tests/gguf/gguf_builder.h"

namespace isotherm::testing {

enum class TinyPredictor {
  kNone,
  kLinear,  // pred_a, pred_b and a zero bias on the FFN input; every firing neuron is kept if rank >= hidden
  kPowerInfer,  // magic PWRI, fc1 and fc2 on the residual; likewise if rank >= 2 * hidden
};

// A random Llama whose every part matters to the logits. Equal options give equal bytes.
struct TinyLlamaOptions {
  int64_t layers = 2;
  int64_t hidden = 64;
  int64_t ffn = 96;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t vocabulary = 320;  // at least 259: <unk>, <s>, </s> and the bytes
  int64_t context = 256;
  gguf::TensorType type = gguf::TensorType::kF32;  // of the matrices; F32, F16, Q8_0 or Q4_0
  std::string activation = "relu";                 // or "silu" or "fatrelu"; empty leaves the key out
  float activation_threshold = 0;                  // for "fatrelu"
  bool tied_head = false;
  bool transposed_down = false;  // always so for kPowerInfer
  TinyPredictor predictor = TinyPredictor::kNone;
  int64_t predictor_rank = 16;
  bool activation_counts = false;  // falling as 1 / (neuron + 1), of 1000 tokens
  uint32_t seed = 1;
  std::string architecture = "llama";  // its name in the file; the tensors are a Llama's whatever it says
};

// The builder, for tests that spoil a part; TinyLlama gives the file's bytes.
GgufBuilder TinyLlamaBuilder(const TinyLlamaOptions& options = {});
Bytes TinyLlama(const TinyLlamaOptions& options = {});
// Writes bytes to a file, aborting if that fails; returns the path.
std::string WriteFile(const std::string& path, const Bytes& bytes);

}  // namespace isotherm::testing

#endif  // ISOTHERM_TESTS_GGUF_TINY_LLAMA_H_
