#ifndef ISOTHERM_COMMON_RPC_STOP_EVENT_H_
#define ISOTHERM_COMMON_RPC_STOP_EVENT_H_

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/base/unique_fd.h"

namespace isotherm::rpc {

// SIGTERM, SIGINT or a call from another thread, waited for without polling. The signals must be blocked in
// every thread.
class StopEvent {
 public:
  absl::Status Open();
  // Thread-safe.
  void Raise();
  // True if a signal or Raise() came since the last call that said so, false when the time is up. One thread.
  bool Wait(absl::Duration at_most);

 private:
  base::UniqueFd signals_;
  base::UniqueFd raised_;
};

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_STOP_EVENT_H_
