#ifndef ISOTHERM_GPU_WORKER_SERVICE_NEXT_STEP_H_
#define ISOTHERM_GPU_WORKER_SERVICE_NEXT_STEP_H_

#include <cstdint>
#include <optional>

#include "isotherm/worker/v1/model_runner.pb.h"

// While the gateway makes a step's logits text and asks for the next step, which takes half a millisecond and
// more, the devices would idle. What a single sequence that continues greedily wants next is known already.
namespace isotherm::gpu_worker {

// The step that follows on `request` and its outputs, if the request says that it continues greedily and its
// KV blocks, of so many rows each, have room for one more.
std::optional<worker::v1::StepRequest> GuessNextStep(const worker::v1::StepRequest& request,
                                                     const worker::v1::StepSuccess& success,
                                                     int64_t kv_block_size);

// Whether what was computed for the guess is what the request asks for.
bool IsGuessed(const worker::v1::StepRequest& guess, const worker::v1::StepRequest& request);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_SERVICE_NEXT_STEP_H_
