#include "common/exchange/session.h"

#include <algorithm>
#include <limits>

#include "common/base/status_macros.h"
#include "common/exchange/doorbell.h"
#include "common/exchange/negotiate.h"
#include "common/exchange/request.h"

namespace isotherm::exchange {

absl::StatusOr<RequestHeader> Session::Check(const Descriptor& descriptor, uint64_t generation,
                                             uint32_t sequence) {
  if (descriptor.placement_epoch != policy_.placement_epoch) FollowPlacement(descriptor.placement_epoch);
  return CheckDescriptor(descriptor, {.geometry = geometry_,
                                      .placement_epoch = policy_.placement_epoch,
                                      .generation = generation,
                                      .sequence = sequence});
}

void Session::FollowPlacement(uint64_t epoch) {
  absl::StatusOr<ServerPolicy> accepted = accepted_();
  if (!accepted.ok() || accepted->placement_epoch != epoch || !CheckPolicy(*accepted).ok()) return;
  policy_ = *std::move(accepted);
}

absl::StatusOr<Descriptor> Session::Execute(const Descriptor& descriptor, const ServerRequest& request,
                                            float* y) {
  static const std::vector<uint64_t> kNothingHot;
  const auto layer = static_cast<size_t>(request.header.layer);
  const std::vector<uint64_t>& hot = policy_.hot.empty() ? kNothingHot : policy_.hot[layer];
  ISOTHERM_RETURN_IF_ERROR(CheckMasks(descriptor, geometry_, request.masks, hot));
  const int64_t begin_ns = MonotonicNanoseconds();
  ISOTHERM_ASSIGN_OR_RETURN(const ServerAnswer answer, executor_->Execute(request, y));
  const int64_t end_ns = MonotonicNanoseconds();
  Descriptor echo = MakeAnswer(descriptor, answer, end_ns);
  echo.compute_ns =
      static_cast<uint32_t>(std::min<int64_t>(end_ns - begin_ns, std::numeric_limits<uint32_t>::max()));
  return echo;
}

void Session::SetStep(StepState state) {
  if (state == step_) return;
  step_ = state;
  executor_->OnStep(state);
}

}  // namespace isotherm::exchange
