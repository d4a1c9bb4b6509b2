#include "common/rpc/client_flags.h"

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/listen.h"

ABSL_FLAG(
    std::string, tls_ca, "",
    "Who signed the certificates of the servers to connect to (PEM); given, connections to host:port are "
    "TLS. Empty: plain text.");
ABSL_FLAG(std::string, tls_client_cert, "",
          "Certificate to show to servers that ask for one (PEM). Read again when it changes.");
ABSL_FLAG(std::string, tls_client_key, "", "Private key of --tls-client-cert (PEM).");
ABSL_DECLARE_FLAG(bool, insecure);

namespace isotherm::rpc {

base::FlagGroup ConnectionFlags() {
  return {"Connections to servers", {"tls_ca", "tls_client_cert", "tls_client_key"}};
}

absl::StatusOr<ClientCredentials> CredentialsFromFlags(const std::string& api_key) {
  const TlsFiles tls = {absl::GetFlag(FLAGS_tls_client_cert), absl::GetFlag(FLAGS_tls_client_key),
                        absl::GetFlag(FLAGS_tls_ca)};
  if (tls.certificate.empty() != tls.key.empty()) {
    return base::UsageError("--tls-client-cert and --tls-client-key come together");
  }
  if (tls.ca.empty() && !tls.certificate.empty()) {
    return base::UsageError("--tls-client-cert needs --tls-ca too: it says which servers to trust");
  }
  return ClientCredentials::Load(tls, api_key);
}

absl::Status CheckReachedSafely(const std::string& flag, const std::string& address) {
  if (const absl::Status known = base::CheckAddress(address); !known.ok()) {
    return base::UsageError(absl::StrCat("--", flag, ": ", std::string(known.message())));
  }
  if (absl::StartsWith(address, "unix:") || !absl::GetFlag(FLAGS_tls_ca).empty() ||
      absl::GetFlag(FLAGS_insecure) || base::IsLoopback(address)) {
    return absl::OkStatus();
  }
  return base::UsageError(
      absl::StrCat("--", flag, "=", address,
                   " is on the network and would be reached in plain text: give --tls-ca, "
                   "or say --insecure"));
}

}  // namespace isotherm::rpc
