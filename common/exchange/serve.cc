#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/exchange/channel.h"
#include "common/exchange/file_inbox.h"
#include "common/exchange/inline_server.h"
#include "common/exchange/negotiate.h"
#include "common/exchange/region.h"
#include "common/exchange/session.h"
#include "common/exchange/shm_server.h"
#include "common/observe/log.h"

namespace isotherm::exchange {
namespace {

// The region to serve, or null for inline.
absl::StatusOr<std::unique_ptr<Region>> MakeRegion(const worker::v1::ExchangeOpen& open,
                                                   const Geometry& geometry, const ServerOptions& options) {
  ISOTHERM_ASSIGN_OR_RETURN(const Transport asked, FromProto(open.transport()));
  const absl::StatusOr<HostProof> proof = ProveHost(options.shm_directory);
  const bool same_host = proof.ok() && *proof == HostProof{open.boot_id(), open.shm_device()};
  ISOTHERM_ASSIGN_OR_RETURN(const Transport transport, ChooseTransport(asked, options.transport, same_host));
  if (transport == Transport::kInline) return nullptr;

  absl::StatusOr<std::unique_ptr<Region>> region = Region::Create(options.shm_directory, geometry.OfRegion());
  if (region.ok()) return region;
  const std::string cause(region.status().message());
  if (asked == Transport::kSharedMemory || options.transport == Transport::kSharedMemory) {
    return absl::FailedPreconditionError(absl::StrCat("exchange transport shm: ", cause));
  }
  spdlog::warn("exchange: shared memory cannot be used, falling back to inline: {}", cause);
  return nullptr;
}

// The GPU worker can do without them.
void SendBundles(const BundleFile& bundles, const std::string& directory, const std::string& inbox) {
  const absl::Status sent = SendFile(bundles.fd, directory, inbox);
  if (!sent.ok()) spdlog::info("the neurons cannot be shared: {}", std::string(sent.message()));
}

}  // namespace

absl::Status ServeExchange(grpc::ServerContext* context, ServerStream* stream, const ServerOptions& options,
                           const std::function<absl::StatusOr<ServerPolicy>()>& policy, Executor* executor) {
  worker::v1::ExchangeRequest request;
  if (!stream->Read(&request))
    return absl::CancelledError("the GPU worker left before it had opened the exchange");
  if (!request.has_open()) return absl::InvalidArgumentError("exchange: the first message must be `open`");
  ISOTHERM_ASSIGN_OR_RETURN(ServerPolicy accepted, policy());
  ISOTHERM_RETURN_IF_ERROR(CheckPolicy(accepted));
  ISOTHERM_ASSIGN_OR_RETURN(const Geometry geometry, CheckOpen(request.open(), accepted));
  ISOTHERM_ASSIGN_OR_RETURN(std::unique_ptr<Region> region, MakeRegion(request.open(), geometry, options));

  const bool is_inline = region == nullptr;
  if (!is_inline && accepted.bundles.has_value()) {
    SendBundles(*accepted.bundles, options.shm_directory, request.open().file_inbox());
  }
  if (is_inline) ISOTHERM_RETURN_IF_ERROR(CheckInlineFits(geometry, options.max_message_bytes));
  Session session(is_inline ? geometry : geometry.OfRegion(), std::move(accepted), policy, executor);
  const absl::Status status = is_inline
                                  ? ServeInline(stream, &session)
                                  : ServeSharedMemory(context, stream, std::move(region), &session, options);
  session.served().End(status);
  return status;
}

}  // namespace isotherm::exchange
