#ifndef ISOTHERM_CPU_WORKER_SERVICE_PLACEMENT_REQUEST_H_
#define ISOTHERM_CPU_WORKER_SERVICE_PLACEMENT_REQUEST_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/neuron/placement.h"
#include "isotherm/worker/v1/neuron.pb.h"

namespace isotherm::cpu_worker {

// The placement a message describes for a model of that shape. InvalidArgument names the field at fault: the
// number of layers, the size of a mask, bits past the last neuron, or a digest that is not that of the masks.
absl::StatusOr<neuron::Placement> ParsePlacement(const worker::v1::ApplyPlacementRequest& request,
                                                 int64_t layers, int64_t ffn);

}  // namespace isotherm::cpu_worker

#endif  // ISOTHERM_CPU_WORKER_SERVICE_PLACEMENT_REQUEST_H_
