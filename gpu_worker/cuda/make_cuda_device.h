#ifndef ISOTHERM_GPU_WORKER_CUDA_MAKE_CUDA_DEVICE_H_
#define ISOTHERM_GPU_WORKER_CUDA_MAKE_CUDA_DEVICE_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "gpu_worker/device/device.h"

namespace isotherm::gpu_worker {

// From here on the bus is sooner ready with all cold neurons than the CPU worker with those that the rows
// want: it takes 110 ms for a step of 7B under 8 GiB, 14 threads take 10 ms a row (docs/benchmarks.md, H200).
inline constexpr int64_t kDefaultStreamRows = 17;

struct CudaDeviceOptions {
  int number = 0;  // among the visible GPUs
  int loader_threads = 1;
  // Hold decode passes as CUDA graphs.
  bool graphs = true;
  // Passes of at least so many rows bring cold neurons over from a CPU worker that shares them instead of
  // having it compute them. 0: never.
  int64_t stream_rows = kDefaultStreamRows;
  // Share of the cold neurons that passes of few rows compute on the GPU, reading them over the bus from a
  // CPU worker that shares its memory; from 0 to 1, in steps of a 64th. Absent: what leaves both ready at
  // about the same time, which depends on the weights.
  std::optional<double> bus_share;
  // Tell the CPU worker a layer early what it will probably be asked for.
  bool look_ahead = true;
  // Time the operators of decode passes and log the times when the device goes.
  bool time_operators = false;
};

// Device `cuda` on one of the visible GPUs. FailedPrecondition, saying what is missing, in a build without
// CUDA, without a driver, without a GPU of that number and of compute capability 8.0 or later, and without
// cuBLAS.
absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(const CudaDeviceOptions& options);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_CUDA_MAKE_CUDA_DEVICE_H_
