#ifndef ISOTHERM_GPU_WORKER_DEVICE_LAYER_RANGE_H_
#define ISOTHERM_GPU_WORKER_DEVICE_LAYER_RANGE_H_

#include <cstdint>

namespace isotherm::gpu_worker {

// Contiguous layers of a model: what one of several devices holds.
struct LayerRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t count() const { return end - begin; }
  bool operator==(const LayerRange&) const = default;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_DEVICE_LAYER_RANGE_H_
