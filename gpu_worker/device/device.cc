#include "gpu_worker/device/device.h"

namespace isotherm::gpu_worker {

FfnParameters MakeFfnParameters(const model::Hyperparameters& hyperparameters) {
  return {hyperparameters.hidden, hyperparameters.ffn, hyperparameters.activation,
          hyperparameters.activation_threshold};
}

const char* MemoryPurposeName(MemoryPurpose purpose) {
  switch (purpose) {
    case MemoryPurpose::kAttention:
      return "attention";
    case MemoryPurpose::kHead:
      return "embedding and head";
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
