#ifndef ISOTHERM_COMMON_NEURON_GPU_INDEX_H_
#define ISOTHERM_COMMON_NEURON_GPU_INDEX_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "common/neuron/placement.h"

namespace isotherm::neuron {

// The placement in an index file of PowerInfer, "<model>.generated.gpuidx", for a model of that shape; its
// epoch is 1. The file has the magic "PWRI", general.architecture "generic.gpu_index",
// generic.gpu_index.block_count, and for layer i, by order and not by name, as tensor 2i one I32 a neuron, 1
// for hot, and as tensor 2i + 1 the numbers of the hot ones, ascending. InvalidArgument names the file and
// what is wrong, also where the two tensors of a layer disagree; FailedPrecondition for one of another shape.
absl::StatusOr<Placement> ReadGpuIndex(const std::string& path, int64_t layers, int64_t ffn);

}  // namespace isotherm::neuron

#endif  // ISOTHERM_COMMON_NEURON_GPU_INDEX_H_
