#ifndef ISOTHERM_COMMON_EXCHANGE_REQUEST_H_
#define ISOTHERM_COMMON_EXCHANGE_REQUEST_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/exchange/channel.h"
#include "common/exchange/region_layout.h"

// What a peer wrote, checked before use. Both transports pass private copies: the peer cannot change them
// after the check.
namespace isotherm::exchange {

// Client: InvalidArgument for a header outside the geometry.
absl::StatusOr<Descriptor> MakeDescriptor(const RequestHeader& header, const Geometry& geometry,
                                          uint64_t generation, uint32_t sequence);

// What a server expects of the next request.
struct Expected {
  const Geometry& geometry;
  uint64_t placement_epoch = 0;
  uint64_t generation = 0;
  uint32_t sequence = 0;
};

// Server: InvalidArgument naming the first field that is wrong.
absl::StatusOr<RequestHeader> CheckDescriptor(const Descriptor& descriptor, const Expected& expected);

// Server: every mask within the FFN and off the hot neurons of its layer, and as many gate values as mask
// bits where the request has them. `hot` is empty (no placement yet: nothing is hot) or one mask.
absl::Status CheckMasks(const Descriptor& descriptor, const Geometry& geometry, const uint64_t* masks,
                        const std::vector<uint64_t>& hot);

// Server: the request's descriptor, completed into that of its answer.
Descriptor MakeAnswer(const Descriptor& request, const ServerAnswer& answer, int64_t answered_at_ns);

// Client: DataLoss unless `answer` echoes `request` and its counts are possible.
absl::Status CheckEcho(const Descriptor& request, const Descriptor& answer, const Geometry& geometry);

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_REQUEST_H_
