#include "common/rpc/admission.h"

#include <grpc/grpc_security_constants.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"

namespace isotherm::rpc {
namespace {

struct CurrentRules {
  base::Mutex mutex;
  AdmissionRules rules ABSL_GUARDED_BY(mutex);
  bool refuse ABSL_GUARDED_BY(mutex) = false;
};

CurrentRules& Current() {
  static CurrentRules& current = *new CurrentRules;
  return current;
}

absl::StatusOr<AdmissionRules> Rules() {
  CurrentRules& current = Current();
  base::MutexLock lock(&current.mutex);
  if (current.refuse) return absl::UnavailableError("the server is ending and takes no new calls");
  return current.rules;
}

bool HasCertificate(const grpc::ServerContext& context) {
  const auto peer = context.auth_context();
  return peer != nullptr && !peer->FindPropertyValues(GRPC_X509_PEM_CERT_PROPERTY_NAME).empty();
}

absl::StatusOr<std::string> PresentedKey(const grpc::ServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto header = metadata.find("authorization");
  if (header == metadata.end()) {
    return absl::UnauthenticatedError(
        "no API key: send the metadata \"authorization: Bearer KEY\" (--api-key-file of isotherm)");
  }
  absl::string_view value(header->second.data(), header->second.size());
  if (!absl::StartsWithIgnoreCase(value, "bearer ")) {
    return absl::UnauthenticatedError("the metadata \"authorization\" is not \"Bearer KEY\"");
  }
  return std::string(value.substr(value.find(' ') + 1));
}

}  // namespace

void SetAdmissionRules(AdmissionRules rules) {
  CurrentRules& current = Current();
  base::MutexLock lock(&current.mutex);
  std::swap(current.rules, rules);
  current.refuse = false;
}

void RefuseNewCalls() {
  CurrentRules& current = Current();
  base::MutexLock lock(&current.mutex);
  current.refuse = true;
}

Permit::~Permit() {
  if (keys_ != nullptr) keys_->EndCall(name_);
}

void Permit::ChargeTokens(int64_t tokens) const {
  if (keys_ != nullptr) keys_->ChargeTokens(name_, tokens);
}

absl::StatusOr<Permit> Admit(const grpc::ServerContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const AdmissionRules rules, Rules());
  if (rules.client_certificates && !absl::StartsWith(context.peer(), "unix:") && !HasCertificate(context)) {
    return absl::UnauthenticatedError(
        "no client certificate: show one that the server's --tls-client-ca signed (--tls-client-cert and "
        "--tls-client-key of Isotherm's own clients)");
  }
  if (rules.keys == nullptr) return Permit();
  ISOTHERM_ASSIGN_OR_RETURN(const std::string presented, PresentedKey(context));
  ISOTHERM_ASSIGN_OR_RETURN(const std::string name, rules.keys->BeginCall(presented));
  return Permit(rules.keys, name);
}

}  // namespace isotherm::rpc
