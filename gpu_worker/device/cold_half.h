#ifndef ISOTHERM_GPU_WORKER_DEVICE_COLD_HALF_H_
#define ISOTHERM_GPU_WORKER_DEVICE_COLD_HALF_H_

#include <cstdint>

#include "absl/status/status.h"
#include "common/exchange/channel.h"
#include "gpu_worker/device/device.h"

namespace isotherm::gpu_worker {

// out = masks & hot (or & ~hot) row by row, and where `gate` [rows, ffn] is given its values at the set bits,
// compacted in the order the exchange and the FFN kernels read them. Returns the number of set bits. Every
// pointer is to host memory, those inside `call` too.
int64_t SelectHalf(const FfnCall& call, const uint64_t* hot_mask, int64_t ffn, bool want_hot, uint64_t* out,
                   float* gate_values);

// Sends the call's rows and their cold bits on the channel, from host memory.
absl::Status SendColdHalf(exchange::Channel& channel, uint64_t step, uint64_t placement_epoch,
                          const FfnCall& call, const uint64_t* hot_mask, const FfnParameters& ffn);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_DEVICE_COLD_HALF_H_
