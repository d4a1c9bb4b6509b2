#ifndef ISOTHERM_COMMON_EXCHANGE_NEGOTIATE_H_
#define ISOTHERM_COMMON_EXCHANGE_NEGOTIATE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/exchange/channel.h"
#include "isotherm/worker/v1/neuron.pb.h"

// What the opening message says and how the server answers it.
namespace isotherm::exchange {

// Goes up with every change of the messages' order or meaning.
inline constexpr uint32_t kProtocolVersion = 5;

// Two processes with equal proofs see the same shared-memory directory: one kernel, one mount.
struct HostProof {
  std::string boot_id;
  uint64_t shm_device = 0;

  bool operator==(const HostProof&) const = default;
};
absl::StatusOr<HostProof> ProveHost(const std::string& shm_directory);

// The client's opening message; options.geometry has passed CheckGeometry. `proof` is empty when there is
// none.
worker::v1::ExchangeOpen MakeOpen(const ClientOptions& options, Transport transport, const HostProof& proof);

// The geometry both sides use from here on. InvalidArgument for numbers out of range; FailedPrecondition,
// naming what each side has, where the two do not belong together.
absl::StatusOr<Geometry> CheckOpen(const worker::v1::ExchangeOpen& open, const ServerPolicy& policy);

// Internal when a policy's hot masks are not of its own shape.
absl::Status CheckPolicy(const ServerPolicy& policy);

// kSharedMemory or kInline from what both sides ask for. FailedPrecondition when that cannot be had.
absl::StatusOr<Transport> ChooseTransport(Transport client, Transport server, bool same_host);

// FailedPrecondition when the largest frame of this geometry is longer than `max_message_bytes`.
absl::Status CheckInlineFits(const Geometry& geometry, int64_t max_message_bytes);

worker::v1::ExchangeTransport ToProto(Transport transport);
// InvalidArgument for a value this version does not know.
absl::StatusOr<Transport> FromProto(worker::v1::ExchangeTransport transport);

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_NEGOTIATE_H_
