#ifndef ISOTHERM_COMMON_EXCHANGE_SESSION_H_
#define ISOTHERM_COMMON_EXCHANGE_SESSION_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>

#include "common/exchange/channel.h"
#include "common/exchange/region_layout.h"
#include "common/exchange/served_sequences.h"

namespace isotherm::exchange {

using PolicySource = std::function<absl::StatusOr<ServerPolicy>()>;
using ServerStream = grpc::ServerReaderWriter<worker::v1::ExchangeResponse, worker::v1::ExchangeRequest>;

// One opened stream on the server, whichever the transport: the checks around the executor, its steps, and
// whom they are for. One thread, but for served().
class Session {
 public:
  // `accepted`: the policy of now, asked when a request names another placement epoch than `policy`.
  Session(const Geometry& geometry, ServerPolicy policy, PolicySource accepted, Executor* executor)
      : geometry_(geometry),
        accepted_(std::move(accepted)),
        executor_(executor),
        policy_(std::move(policy)) {}
  ~Session() { SetStep(StepState::kClosed); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const Geometry& geometry() const { return geometry_; }
  const std::optional<BundleFile>& bundles() const { return policy_.bundles; }

  // First the descriptor, which says how much payload there is.
  absl::StatusOr<RequestHeader> Check(const Descriptor& descriptor, uint64_t generation, uint32_t sequence);

  // Then the payload. `descriptor`, request.header and request.masks are private copies; x and gate_values
  // may lie where the peer can still write. Fills y and returns the answer's descriptor.
  absl::StatusOr<Descriptor> Execute(const Descriptor& descriptor, const ServerRequest& request, float* y);

  void OnExpectation(int64_t layer, const uint64_t* mask, absl::FunctionRef<bool()> stop) {
    executor_->OnExpectation(layer, mask, stop);
  }

  // Tells the executor about a change.
  void SetStep(StepState state);
  StepState step() const { return step_; }

  ServedSequences& served() { return served_; }

 private:
  // Takes over the placement announced since, if it has that epoch.
  void FollowPlacement(uint64_t epoch);

  const Geometry geometry_;
  const PolicySource accepted_;
  Executor* const executor_;
  ServerPolicy policy_;
  StepState step_ = StepState::kClosed;
  ServedSequences served_;
};

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_SESSION_H_
