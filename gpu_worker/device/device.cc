#include "gpu_worker/device/device.h"

namespace isotherm::gpu_worker {

FfnParameters MakeFfnParameters(const model::Hyperparameters& hyperparameters) {
  return {hyperparameters.hidden, hyperparameters.ffn, hyperparameters.activation,
          hyperparameters.activation_threshold};
}

void Device::MatMuls(absl::Span<const Product> products, const float* x, int64_t rows) {
  for (const Product& product : products) MatMul(product.weight, product.bias, x, rows, product.y);
}

void Device::AddAndNormalize(const Term& term, const Norm& norm, int64_t rows, int64_t n, float* y,
                             float* out) {
  Add(term.x, term.bias, term.scale, rows, n, y);
  Normalize(norm, y, rows, n, out);
}

void Device::MergeAndNormalize(const FfnCall& call, const HotLayer& hot, const FfnTerm& term,
                               const Norm& norm, int64_t n, float* y, float* out) {
  MergeCold(call, hot, term.part);
  AddAndNormalize({term.part, term.bias, term.scale}, norm, call.rows, n, y, out);
}

const char* MemoryPurposeName(MemoryPurpose purpose) {
  switch (purpose) {
    case MemoryPurpose::kDevice:
      return "device";
    case MemoryPurpose::kEmbedding:
      return "embedding";
    case MemoryPurpose::kAttention:
      return "attention";
    case MemoryPurpose::kHead:
      return "head";
    case MemoryPurpose::kKvCache:
      return "KV cache";
    case MemoryPurpose::kPredictor:
      return "predictor";
    case MemoryPurpose::kWorkspace:
      return "workspace";
    case MemoryPurpose::kHotNeurons:
      return "hot neurons";
  }
  return "unknown";
}

}  // namespace isotherm::gpu_worker
