#ifndef ISOTHERM_COMMON_NEURON_BANDWIDTH_H_
#define ISOTHERM_COMMON_NEURON_BANDWIDTH_H_

#include <cstdint>

#include "absl/time/time.h"
#include "common/base/thread_pool.h"

namespace isotherm::neuron {

// Bytes a second at which the pool's members together read memory front to back: what bundles can be streamed
// at. Takes slices in turn until the budget is spent (at least one) and returns their median, so that a stray
// interruption does not count. Meaningful only for memory larger than the caches; 0 for none.
double MeasureReadBandwidth(base::ThreadPool& pool, const uint8_t* memory, int64_t bytes,
                            absl::Duration budget);

}  // namespace isotherm::neuron

#endif  // ISOTHERM_COMMON_NEURON_BANDWIDTH_H_
