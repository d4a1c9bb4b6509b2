#include "common/rpc/server_flags.h"

#include <cstdint>
#include <string>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/status_macros.h"

ABSL_FLAG(std::string, tls_cert, "",
          "Certificate (PEM, with the intermediate ones) for TLS on every host:port listened on. Read again "
          "when it changes.");
ABSL_FLAG(std::string, tls_key, "", "Private key of --tls-cert (PEM). Read again when it changes.");
ABSL_FLAG(std::string, tls_client_ca, "",
          "Who signed the certificates that clients must show (PEM): mutual TLS. Empty: clients need none.");
ABSL_FLAG(
    bool, insecure, false,
    "Allows plain text, and callers that nobody vouches for, on addresses that other machines can reach.");
ABSL_FLAG(std::string, socket_mode, "0600", "Permissions of Unix sockets listened on, in octal.");
ABSL_FLAG(int, max_message_mib, 0, "Largest message accepted, in MiB. 0: 4 for the gateway, 64 for workers.");
ABSL_FLAG(
    int, max_buffer_mib, 512,
    "MiB that messages on their way in and out may take, all connections together; beyond them calls are "
    "cancelled.");
ABSL_FLAG(int, max_upload_mib, 0,
          "MiB that a TCP connection may send beyond --max-message-mib for each call that has arrived whole; "
          "then it is closed. 0: 128 for the gateway, no limit for workers, whose calls go on for ever.");
ABSL_FLAG(int, max_calls, 1024, "Calls that run at once; one more gets RESOURCE_EXHAUSTED.");
ABSL_FLAG(int, max_connections, 1000, "Connections open at once; one more is closed.");
ABSL_FLAG(absl::Duration, handshake_timeout, absl::Seconds(10),
          "A connection that has not finished its TLS and HTTP/2 handshakes by then is closed.");
ABSL_FLAG(absl::Duration, idle_timeout, absl::Minutes(5),
          "A connection on which no call runs for so long is closed.");

namespace isotherm::rpc {
namespace {

absl::Status RequireBetween(const char* flag, int value, int least, int most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return base::UsageError(absl::StrCat("--", flag, "=", value, ": must be between ", least, " and ", most));
}

absl::Status RequirePositive(const char* flag, absl::Duration value) {
  if (value > absl::ZeroDuration() && value <= absl::Hours(24)) return absl::OkStatus();
  return base::UsageError(
      absl::StrCat("--", flag, "=", absl::FormatDuration(value), ": must be above 0 and at most 24h"));
}

absl::StatusOr<mode_t> ParseMode(const std::string& text) {
  mode_t mode = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '7') mode = 01000;
    mode = mode << 3 | static_cast<mode_t>(digit - '0');
    if (mode > 0777) break;
  }
  if (text.empty() || mode > 0777) {
    return base::UsageError(absl::StrCat("--socket-mode=", text, ": use octal permissions such as 0600"));
  }
  return mode;
}

}  // namespace

base::FlagGroup AccessFlags() {
  return {"Access", {"tls_cert", "tls_key", "tls_client_ca", "insecure", "socket_mode"}};
}

base::FlagGroup LimitFlags() {
  return {"Limits",
          {"max_message_mib", "max_upload_mib", "max_buffer_mib", "max_calls", "max_connections",
           "handshake_timeout", "idle_timeout"}};
}

absl::Status ReadServerFlags(ServerOptions& options) {
  constexpr int kMost = 1 << 20;
  options.tls = {absl::GetFlag(FLAGS_tls_cert), absl::GetFlag(FLAGS_tls_key),
                 absl::GetFlag(FLAGS_tls_client_ca)};
  if (options.tls.certificate.empty() != options.tls.key.empty() ||
      (options.tls.certificate.empty() && !options.tls.ca.empty())) {
    return base::UsageError("TLS needs both --tls-cert and --tls-key; --tls-client-ca comes on top of them");
  }
  options.insecure = absl::GetFlag(FLAGS_insecure);
  ISOTHERM_ASSIGN_OR_RETURN(options.socket_mode, ParseMode(absl::GetFlag(FLAGS_socket_mode)));
  const int message_mib = absl::GetFlag(FLAGS_max_message_mib);
  ISOTHERM_RETURN_IF_ERROR(RequireBetween("max-message-mib", message_mib, 0, 2047));
  if (message_mib > 0) options.max_message_bytes = message_mib << 20;
  const int upload_mib = absl::GetFlag(FLAGS_max_upload_mib);
  ISOTHERM_RETURN_IF_ERROR(RequireBetween("max-upload-mib", upload_mib, 0, kMost));
  if (upload_mib > 0) options.max_upload_bytes = int64_t{upload_mib} << 20;
  ISOTHERM_RETURN_IF_ERROR(RequireBetween("max-buffer-mib", absl::GetFlag(FLAGS_max_buffer_mib), 1, kMost));
  options.max_buffer_bytes = int64_t{absl::GetFlag(FLAGS_max_buffer_mib)} << 20;
  options.max_concurrent_streams = absl::GetFlag(FLAGS_max_calls);
  ISOTHERM_RETURN_IF_ERROR(RequireBetween("max-calls", options.max_concurrent_streams, 1, kMost));
  options.max_connections = absl::GetFlag(FLAGS_max_connections);
  ISOTHERM_RETURN_IF_ERROR(RequireBetween("max-connections", options.max_connections, 1, kMost));
  options.handshake_timeout = absl::GetFlag(FLAGS_handshake_timeout);
  ISOTHERM_RETURN_IF_ERROR(RequirePositive("handshake-timeout", options.handshake_timeout));
  options.idle_timeout = absl::GetFlag(FLAGS_idle_timeout);
  return RequirePositive("idle-timeout", options.idle_timeout);
}

}  // namespace isotherm::rpc
