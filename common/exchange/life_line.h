#ifndef ISOTHERM_COMMON_EXCHANGE_LIFE_LINE_H_
#define ISOTHERM_COMMON_EXCHANGE_LIFE_LINE_H_

#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/exchange/region.h"
#include "common/exchange/session.h"

namespace isotherm::exchange {

// The server's watch over the stream of a shared-memory exchange: a thread reads it, removes the region's
// name once the client has mapped it, takes notes, and fails the region when the stream ends.
class LifeLine {
 public:
  LifeLine(grpc::ServerContext* context, ServerStream* stream, Region* region, ServedSequences* served);
  // Fails the region. A client that is there ends the stream then, and learns the status of the call; another
  // is cancelled.
  ~LifeLine();
  LifeLine(const LifeLine&) = delete;
  LifeLine& operator=(const LifeLine&) = delete;

  // OK once the client has mapped the region.
  absl::Status AwaitAttached(absl::Duration timeout);

 private:
  void Watch();

  grpc::ServerContext* const context_;
  ServerStream* const stream_;
  Region* const region_;
  ServedSequences* const served_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool attached_ = false;  // guarded by mutex_
  bool ended_ = false;     // guarded by mutex_

  std::thread thread_;  // last: runs once everything above exists
};

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_LIFE_LINE_H_
