#include "common/neuron/mask.h"

#include <algorithm>

namespace isotherm::neuron {

int64_t CountBits(const uint64_t* mask, int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(mask[w]);
  return count;
}

void SetAll(uint64_t* mask, int64_t neurons) {
  std::fill_n(mask, MaskWords(neurons), ~uint64_t{0});
  if (neurons % 64 != 0) mask[neurons / 64] = (uint64_t{1} << (neurons % 64)) - 1;
}

}  // namespace isotherm::neuron
