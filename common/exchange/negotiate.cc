#include "common/exchange/negotiate.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/host.h"
#include "common/base/status_macros.h"
#include "common/exchange/region_layout.h"
#include "common/neuron/bundle.h"
#include "common/neuron/mask.h"

namespace isotherm::exchange {
namespace {

// Tags and lengths of the messages around a frame's bytes.
constexpr int64_t kFrameOverhead = 64;

template <typename Value>
absl::Status CheckEqual(const char* what, const Value& client, const Value& server) {
  if (client == server) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(what, " differs: the GPU worker has ", client, ", this CPU worker ", server));
}

Geometry GeometryOf(const worker::v1::ExchangeGeometry& geometry) {
  return {.layers = geometry.layers(),
          .hidden = geometry.hidden_size(),
          .ffn = geometry.ffn_size(),
          .max_rows = geometry.max_rows(),
          .gate_values = geometry.gate_values(),
          .bf16 = geometry.bf16_activations()};
}

int64_t LargestFrame(const Geometry& geometry, int64_t rows) {
  const int64_t gate_values = geometry.gate_values ? rows * geometry.ffn : 0;
  return MakeFrameLayout(geometry, rows, gate_values).bytes + static_cast<int64_t>(sizeof(Descriptor)) +
         kFrameOverhead;
}

}  // namespace

absl::StatusOr<HostProof> ProveHost(const std::string& shm_directory) {
  HostProof proof;
  ISOTHERM_ASSIGN_OR_RETURN(proof.boot_id, base::BootId());
  ISOTHERM_ASSIGN_OR_RETURN(proof.shm_device, base::DeviceNumber(shm_directory));
  return proof;
}

worker::v1::ExchangeOpen MakeOpen(const ClientOptions& options, Transport transport, const HostProof& proof) {
  worker::v1::ExchangeOpen open;
  open.set_protocol_version(kProtocolVersion);
  open.set_region_layout_version(kRegionLayoutVersion);
  open.set_bundle_layout_version(neuron::kBundleLayoutVersion);
  open.set_model_digest(options.model_digest);
  open.set_placement_epoch(options.placement_epoch);
  open.set_placement_digest(options.placement_digest);
  worker::v1::ExchangeGeometry* geometry = open.mutable_geometry();
  geometry->set_layers(static_cast<uint32_t>(options.geometry.layers));
  geometry->set_hidden_size(static_cast<uint32_t>(options.geometry.hidden));
  geometry->set_ffn_size(static_cast<uint32_t>(options.geometry.ffn));
  geometry->set_max_rows(static_cast<uint32_t>(options.geometry.max_rows));
  geometry->set_slots(kSlots);
  geometry->set_gate_values(options.geometry.gate_values);
  geometry->set_bf16_activations(options.geometry.bf16);
  open.set_transport(ToProto(transport));
  open.set_boot_id(proof.boot_id);
  open.set_shm_device(proof.shm_device);
  return open;
}

absl::StatusOr<Geometry> CheckOpen(const worker::v1::ExchangeOpen& open, const ServerPolicy& policy) {
  ISOTHERM_RETURN_IF_ERROR(CheckEqual("protocol version", open.protocol_version(), kProtocolVersion));
  ISOTHERM_RETURN_IF_ERROR(
      CheckEqual("region layout version", open.region_layout_version(), kRegionLayoutVersion));
  ISOTHERM_RETURN_IF_ERROR(
      CheckEqual("bundle layout version", open.bundle_layout_version(), neuron::kBundleLayoutVersion));
  ISOTHERM_RETURN_IF_ERROR(CheckEqual("model digest", open.model_digest(), policy.model_digest));
  const Geometry geometry = GeometryOf(open.geometry());
  ISOTHERM_RETURN_IF_ERROR(CheckEqual("number of layers", geometry.layers, policy.layers));
  ISOTHERM_RETURN_IF_ERROR(CheckEqual("hidden size", geometry.hidden, policy.hidden));
  ISOTHERM_RETURN_IF_ERROR(CheckEqual("FFN size", geometry.ffn, policy.ffn));
  ISOTHERM_RETURN_IF_ERROR(CheckEqual("number of slots", open.geometry().slots(), kSlots));
  ISOTHERM_RETURN_IF_ERROR(CheckEqual("placement epoch", open.placement_epoch(), policy.placement_epoch));
  ISOTHERM_RETURN_IF_ERROR(CheckEqual("placement digest", open.placement_digest(), policy.placement_digest));
  if (geometry.max_rows > policy.max_rows_limit) {
    return absl::InvalidArgumentError(absl::StrCat("the GPU worker asks for ", geometry.max_rows,
                                                   " rows an exchange, this CPU worker allows ",
                                                   policy.max_rows_limit));
  }
  ISOTHERM_RETURN_IF_ERROR(CheckGeometry(geometry));
  return geometry;
}

absl::Status CheckPolicy(const ServerPolicy& policy) {
  if (policy.hot.empty()) return absl::OkStatus();
  const auto layers = static_cast<size_t>(policy.layers);
  const auto words = static_cast<size_t>(neuron::MaskWords(policy.ffn));
  const bool masks_fit =
      std::all_of(policy.hot.begin(), policy.hot.end(),
                  [words](const std::vector<uint64_t>& mask) { return mask.size() == words; });
  if (policy.hot.size() == layers && masks_fit) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("the placement's hot masks are not ", layers, " layers of ", words, " words"));
}

absl::StatusOr<Transport> ChooseTransport(Transport client, Transport server, bool same_host) {
  if (client != Transport::kAuto && server != Transport::kAuto && client != server) {
    return absl::FailedPreconditionError(absl::StrCat("exchange transport differs: the GPU worker asks for ",
                                                      TransportName(client), ", this CPU worker for ",
                                                      TransportName(server)));
  }
  const Transport asked = client != Transport::kAuto ? client : server;
  if (asked == Transport::kAuto) return same_host ? Transport::kSharedMemory : Transport::kInline;
  if (asked == Transport::kSharedMemory && !same_host) {
    return absl::FailedPreconditionError(
        "exchange transport shm: the workers do not share a shared-memory directory (boot id or device "
        "number differ); "
        "mount the same one in both, or use --exchange-transport=inline");
  }
  return asked;
}

absl::Status CheckInlineFits(const Geometry& geometry, int64_t max_message_bytes) {
  const int64_t needed = LargestFrame(geometry, geometry.max_rows);
  if (needed <= max_message_bytes) return absl::OkStatus();
  const int64_t a_row = LargestFrame(geometry, 2) - LargestFrame(geometry, 1);
  const int64_t rows = std::max<int64_t>(0, (max_message_bytes - LargestFrame(geometry, 1)) / a_row + 1);
  return absl::FailedPreconditionError(
      absl::StrCat("exchange transport inline: a frame of ", geometry.max_rows, " rows takes up to ", needed,
                   " bytes, a message holds ", max_message_bytes, ": lower the rows of a step to ", rows,
                   " or raise the servers' message limit"));
}

worker::v1::ExchangeTransport ToProto(Transport transport) {
  switch (transport) {
    case Transport::kAuto:
      return worker::v1::EXCHANGE_TRANSPORT_AUTO;
    case Transport::kSharedMemory:
      return worker::v1::EXCHANGE_TRANSPORT_SHARED_MEMORY;
    case Transport::kInline:
      return worker::v1::EXCHANGE_TRANSPORT_INLINE;
  }
  return worker::v1::EXCHANGE_TRANSPORT_UNSPECIFIED;
}

absl::StatusOr<Transport> FromProto(worker::v1::ExchangeTransport transport) {
  switch (transport) {
    case worker::v1::EXCHANGE_TRANSPORT_AUTO:
      return Transport::kAuto;
    case worker::v1::EXCHANGE_TRANSPORT_SHARED_MEMORY:
      return Transport::kSharedMemory;
    case worker::v1::EXCHANGE_TRANSPORT_INLINE:
      return Transport::kInline;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("unknown exchange transport ", static_cast<int>(transport)));
  }
}

}  // namespace isotherm::exchange
