#include "gpu_worker/device/device.h"

namespace isotherm::gpu_worker {

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
