#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/exchange/channel.h"
#include "common/exchange/client_stream.h"
#include "common/exchange/file_inbox.h"
#include "common/exchange/inline_client.h"
#include "common/exchange/negotiate.h"
#include "common/exchange/region.h"
#include "common/exchange/shm_client.h"
#include "common/observe/log.h"

namespace isotherm::exchange {
namespace {

// A stream whose server has said which transport it will be.
struct OpenedStream {
  std::unique_ptr<ClientStream> stream;
  // Not there with inline, nor where this process may not write to the directory: it can do without.
  absl::StatusOr<std::unique_ptr<FileInbox>> inbox = absl::NotFoundError("inline was asked for");
  Transport transport = Transport::kInline;
  worker::v1::ExchangeOpened opened;
};

absl::StatusOr<OpenedStream> OpenStream(worker::v1::NeuronService::Stub* stub, const ClientOptions& options,
                                        Transport transport, const HostProof& proof) {
  OpenedStream result{.stream = std::make_unique<ClientStream>(stub)};
  worker::v1::ExchangeRequest request;
  *request.mutable_open() = MakeOpen(options, transport, proof);
  if (transport != Transport::kInline) {
    result.inbox = FileInbox::Create(options.shm_directory);
    if (result.inbox.ok()) request.mutable_open()->set_file_inbox((*result.inbox)->name());
  }
  ISOTHERM_RETURN_IF_ERROR(result.stream->Write(request, options.connect_timeout));
  ISOTHERM_ASSIGN_OR_RETURN(ClientStream::Incoming incoming, result.stream->Read(options.connect_timeout));
  result.opened = std::move(*incoming.message.mutable_opened());
  ISOTHERM_ASSIGN_OR_RETURN(result.transport, FromProto(result.opened.transport()));
  if (result.transport == Transport::kAuto ||
      (transport != Transport::kAuto && transport != result.transport)) {
    return absl::FailedPreconditionError(absl::StrCat("the CPU worker opened transport ",
                                                      TransportName(result.transport), ", asked for was ",
                                                      TransportName(transport)));
  }
  return result;
}

// Null where the worker shares none or where they cannot be had; it then computes all cold neurons itself.
std::unique_ptr<SharedBundles> MapBundles(const OpenedStream& opened, int64_t layers) {
  if (!opened.opened.has_bundles()) return nullptr;
  const auto map = [&]() -> absl::StatusOr<std::unique_ptr<SharedBundles>> {
    ISOTHERM_RETURN_IF_ERROR(opened.inbox.status());
    ISOTHERM_ASSIGN_OR_RETURN(const base::UniqueFd file, (*opened.inbox)->Take());
    return SharedBundles::Map(file.get(), opened.opened.bundles(), layers);
  };
  absl::StatusOr<std::unique_ptr<SharedBundles>> bundles = map();
  if (bundles.ok()) return *std::move(bundles);
  spdlog::info("the CPU worker's neurons cannot be mapped: {}", std::string(bundles.status().message()));
  return nullptr;
}

absl::StatusOr<std::unique_ptr<Channel>> Attach(ClientOptions options, OpenedStream opened) {
  options.geometry = options.geometry.OfRegion();
  ISOTHERM_ASSIGN_OR_RETURN(
      std::unique_ptr<Region> region,
      Region::Attach(options.shm_directory, opened.opened.region_name(),
                     static_cast<int64_t>(opened.opened.region_bytes()), options.geometry));
  worker::v1::ExchangeRequest attached;
  attached.mutable_attached();
  ISOTHERM_RETURN_IF_ERROR(opened.stream->Write(attached, options.connect_timeout));
  std::unique_ptr<SharedBundles> bundles = MapBundles(opened, options.geometry.layers);
  return std::make_unique<ShmClient>(options, std::move(region), std::move(bundles),
                                     std::move(opened.stream));
}

absl::StatusOr<std::unique_ptr<Channel>> MakeInline(const ClientOptions& options, OpenedStream opened) {
  ISOTHERM_RETURN_IF_ERROR(CheckInlineFits(options.geometry, options.max_message_bytes));
  return std::make_unique<InlineClient>(options, std::move(opened.stream));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Channel>> Connect(worker::v1::NeuronService::Stub* stub,
                                                 const ClientOptions& options) {
  ISOTHERM_RETURN_IF_ERROR(CheckGeometry(options.geometry));
  Transport transport = options.transport;
  absl::StatusOr<HostProof> proof = ProveHost(options.shm_directory);
  if (!proof.ok()) {
    if (transport == Transport::kSharedMemory) {
      return absl::FailedPreconditionError(
          absl::StrCat("exchange transport shm: ", proof.status().message()));
    }
    transport = Transport::kInline;
    proof = HostProof();
  }
  ISOTHERM_ASSIGN_OR_RETURN(OpenedStream opened, OpenStream(stub, options, transport, *proof));
  if (opened.transport == Transport::kInline) return MakeInline(options, std::move(opened));

  absl::StatusOr<std::unique_ptr<Channel>> channel = Attach(options, std::move(opened));
  if (channel.ok()) return channel;
  if (transport == Transport::kSharedMemory) {
    return absl::FailedPreconditionError(
        absl::StrCat("exchange transport shm: ", channel.status().message()));
  }
  spdlog::warn("exchange: shared memory cannot be used, falling back to inline: {}",
               std::string(channel.status().message()));
  ISOTHERM_ASSIGN_OR_RETURN(opened, OpenStream(stub, options, Transport::kInline, HostProof()));
  return MakeInline(options, std::move(opened));
}

}  // namespace isotherm::exchange
