#include "gpu_worker/cuda/operator_timer.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/base/status_macros.h"

namespace isotherm::gpu_worker::cuda {

absl::Status OperatorTimer::Mark(std::string operation, cudaStream_t stream, Track& track) const {
  ISOTHERM_ASSIGN_OR_RETURN(Event event, MakeEvent());
  // External: the event's time can be read after a replay.
  ISOTHERM_RETURN_IF_ERROR(
      ToStatus(cudaEventRecordWithFlags(event.get(), stream, cudaEventRecordExternal), "timing an operator"));
  if (!track.events.empty()) track.operators.push_back(std::move(operation));
  track.events.push_back(std::move(event));
  return absl::OkStatus();
}

absl::Status OperatorTimer::Collect(const Track& track) {
  for (size_t i = 0; i < track.operators.size(); ++i) {
    float milliseconds = 0;
    ISOTHERM_RETURN_IF_ERROR(
        ToStatus(cudaEventElapsedTime(&milliseconds, track.events[i].get(), track.events[i + 1].get()),
                 "timing an operator"));
    Add(track.operators[i], 1e3 * static_cast<double>(milliseconds));
  }
  return absl::OkStatus();
}

void OperatorTimer::Log() const {
  for (const auto& [name, samples] : samples_) {
    std::vector<double> sorted = samples;
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    spdlog::info("operator time: {}: {} times, median {:.2f} us, sum {:.0f} us", name, sorted.size(), *middle,
                 std::accumulate(sorted.begin(), sorted.end(), 0.0));
  }
}

}  // namespace isotherm::gpu_worker::cuda
