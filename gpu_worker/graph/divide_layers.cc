#include "gpu_worker/graph/divide_layers.h"

#include <algorithm>
#include <limits>

namespace isotherm::gpu_worker {

std::vector<LayerRange> DivideLayers(const ModelWeight& input, int64_t parts) {
  const auto layers = static_cast<int64_t>(input.layers.size());
  std::vector<int64_t> before(layers + 1, input.first);  // weight of what precedes each layer
  for (int64_t l = 0; l < layers; ++l) before[l + 1] = before[l] + input.layers[l];
  const auto weight = [&](int64_t begin, int64_t end) {
    return before[end] - (begin == 0 ? 0 : before[begin]) + (end == layers ? input.last : 0);
  };
  // heaviest[p][l]: of the first l layers in p + 1 parts, divided best; start[p][l]: where the last of these
  // parts then begins.
  constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  std::vector<std::vector<int64_t>> heaviest(parts, std::vector<int64_t>(layers + 1, kNever));
  std::vector<std::vector<int64_t>> start(parts, std::vector<int64_t>(layers + 1, 0));
  for (int64_t l = 1; l <= layers; ++l) heaviest[0][l] = weight(0, l);
  for (int64_t p = 1; p < parts; ++p) {
    for (int64_t l = p + 1; l <= layers; ++l) {
      for (int64_t begin = p; begin < l; ++begin) {
        const int64_t candidate = std::max(heaviest[p - 1][begin], weight(begin, l));
        if (candidate < heaviest[p][l]) {
          heaviest[p][l] = candidate;
          start[p][l] = begin;
        }
      }
    }
  }
  std::vector<LayerRange> ranges(parts);
  int64_t end = layers;
  for (int64_t p = parts - 1; p >= 0; --p) {
    ranges[p] = {start[p][end], end};
    end = ranges[p].begin;
  }
  return ranges;
}

}  // namespace isotherm::gpu_worker
