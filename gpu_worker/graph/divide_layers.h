#ifndef ISOTHERM_GPU_WORKER_GRAPH_DIVIDE_LAYERS_H_
#define ISOTHERM_GPU_WORKER_GRAPH_DIVIDE_LAYERS_H_

#include <cstdint>
#include <vector>

#include "gpu_worker/device/layer_range.h"

namespace isotherm::gpu_worker {

// What the parts of a model weigh, in any unit.
struct ModelWeight {
  std::vector<int64_t> layers;
  // What the first and the last part hold beside their layers.
  int64_t first = 0;
  int64_t last = 0;
};

// Divides the layers into `parts` ranges in their order, none of them empty, so that the heaviest part is as
// light as can be; of several such divisions the one whose earlier parts are shorter. 1 <= parts <= layers.
std::vector<LayerRange> DivideLayers(const ModelWeight& input, int64_t parts);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_GRAPH_DIVIDE_LAYERS_H_
