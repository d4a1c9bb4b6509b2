#ifndef ISOTHERM_GPU_WORKER_CUDA_OPERATOR_TIMER_H_
#define ISOTHERM_GPU_WORKER_CUDA_OPERATOR_TIMER_H_

#include <cuda_runtime.h>

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gpu_worker/cuda/runtime.h"

namespace isotherm::gpu_worker::cuda {

// Where the time of decode passes goes, by operator. Kernels that are timed do not overlap, so that a timed
// pass takes longer than others; the order of the operators by their time stays. One thread.
class OperatorTimer {
 public:
  // Event nodes of one captured pass: one before the first operator and one behind each.
  struct Track {
    std::vector<std::string> operators;
    std::vector<Event> events;
  };

  // Captures an event behind `operation`, or before all others where there are none yet.
  absl::Status Mark(std::string operation, cudaStream_t stream, Track& track) const;
  // Adds what the replay of such a pass took; the stream is idle.
  absl::Status Collect(const Track& track);
  // A time measured otherwise.
  void Add(const std::string& name, double microseconds) { samples_[name].push_back(microseconds); }

  // Logs for each name how often it came, its median and the sum, in microseconds.
  void Log() const;

 private:
  std::map<std::string, std::vector<double>> samples_;
};

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_CUDA_OPERATOR_TIMER_H_
