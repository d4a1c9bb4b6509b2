#ifndef ISOTHERM_COMMON_EXCHANGE_SHM_SERVER_H_
#define ISOTHERM_COMMON_EXCHANGE_SHM_SERVER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/exchange/region.h"
#include "common/exchange/session.h"

namespace isotherm::exchange {

// Serves the slots of a region on one thread.
class ShmServer {
 public:
  ShmServer(Region* region, Session* session, const ServerOptions& options);

  // Returns OK once the region has failed (the stream ended), or what was wrong with a request.
  absl::Status Serve();

 private:
  // OK with a request to answer, or with a failed region.
  absl::Status AwaitRequest();
  absl::Status Answer();
  // What the client expects of the next request is new.
  bool Expects() const;
  // Tells the executor, until the request comes.
  void PassOnExpectation();

  Region* const region_;
  Session* const session_;
  const int64_t spin_ns_;
  const int64_t device_spin_ns_;
  const int64_t slice_ns_;
  uint32_t answered_ = 0;        // sequence of the last answer
  uint32_t expected_ = 0;        // sequence of the last expectation passed on
  std::vector<uint64_t> masks_;  // the request's or the expectation's, out of the peer's reach
};

// Names the region to the client, waits until it is mapped and serves it until the stream ends.
absl::Status ServeSharedMemory(grpc::ServerContext* context, ServerStream* stream,
                               std::unique_ptr<Region> region, Session* session,
                               const ServerOptions& options);

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_SHM_SERVER_H_
