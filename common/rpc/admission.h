#ifndef ISOTHERM_COMMON_RPC_ADMISSION_H_
#define ISOTHERM_COMMON_RPC_ADMISSION_H_

#include <grpcpp/server_context.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/rpc/key_ring.h"

// Who may call the services of this process. Handle asks before every body; health and reflection, which do
// not go through Handle, answer anybody.
namespace isotherm::rpc {

struct AdmissionRules {
  // Calls that come over TCP need a certificate, which the TLS handshake has checked.
  bool client_certificates = false;
  // Every call needs one of these in its metadata, "authorization: Bearer KEY". Null: no call does.
  std::shared_ptr<KeyRing> keys;
};

// The rules from now on. A process has one server, and so one set of rules.
void SetAdmissionRules(AdmissionRules rules);
// Nobody is let in from now on, until rules are set anew.
void RefuseNewCalls();

// A call that was let in, until it ends.
class Permit {
 public:
  Permit() = default;
  Permit(std::shared_ptr<KeyRing> keys, std::string name) : keys_(std::move(keys)), name_(std::move(name)) {}
  ~Permit();
  Permit(Permit&&) = default;
  Permit& operator=(Permit&&) = delete;

  // The name of the caller's API key, empty without one.
  const std::string& key_name() const { return name_; }
  void ChargeTokens(int64_t tokens) const;

 private:
  std::shared_ptr<KeyRing> keys_;
  std::string name_;
};

// Unauthenticated, PermissionDenied or ResourceExhausted say what is missing; Unavailable after
// RefuseNewCalls.
absl::StatusOr<Permit> Admit(const grpc::ServerContext& context);

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_ADMISSION_H_
