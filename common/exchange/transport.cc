#include "absl/strings/str_cat.h"
#include "common/exchange/channel.h"

namespace isotherm::exchange {

const char* TransportName(Transport transport) {
  switch (transport) {
    case Transport::kAuto:
      return "auto";
    case Transport::kSharedMemory:
      return "shm";
    case Transport::kInline:
      return "inline";
  }
  return "unknown";
}

absl::StatusOr<Transport> ParseTransport(const std::string& name) {
  for (const Transport transport : {Transport::kAuto, Transport::kSharedMemory, Transport::kInline}) {
    if (name == TransportName(transport)) return transport;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("exchange transport '", name, "' is not one of auto, shm, inline"));
}

}  // namespace isotherm::exchange
