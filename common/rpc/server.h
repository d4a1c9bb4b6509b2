#ifndef ISOTHERM_COMMON_RPC_SERVER_H_
#define ISOTHERM_COMMON_RPC_SERVER_H_

#include <grpcpp/grpcpp.h>
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/observe/metrics.h"
#include "common/rpc/call.h"
#include "common/rpc/channel.h"
#include "common/rpc/main.h"
#include "common/rpc/status.h"
#include "common/rpc/tls.h"

namespace isotherm::rpc {

struct ServerOptions {
  // gRPC addresses: "unix:/path/socket" or "host:port" (port 0 picks one).
  std::vector<std::string> listen;
  std::string metrics_listen;  // "" for none
  // Where grpc.health.v1 alone is answered, in plain text; "" for nowhere but on `listen`.
  std::string health_listen;
  // TLS on every host:port; Unix sockets stay plain text. Empty: plain text everywhere. With a CA, callers
  // over TCP need a certificate.
  TlsFiles tls;
  // File of API keys (api_key.h), one of which every call then needs. Empty: none does.
  std::string api_keys;
  // Allows addresses that other machines can reach to be plain text or open to everybody.
  bool insecure = false;
  mode_t socket_mode = 0600;  // permissions of Unix sockets
  int max_message_bytes = kDefaultMaxMessageBytes;
  // A TCP connection is closed when it has sent more than this and max_message_bytes for each call of it that
  // arrived. 0: no limit, for services whose calls are streams of requests.
  int64_t max_upload_bytes = 0;
  // For messages on their way in and out, all connections together; gRPC cancels calls to keep to it.
  int64_t max_buffer_bytes = int64_t{512} << 20;
  int max_connections = 1000;
  absl::Duration handshake_timeout = absl::Seconds(10);
  absl::Duration idle_timeout = absl::Minutes(5);  // of a connection without calls
  // Calls that run at once, each on a thread of its own; one more is refused with RESOURCE_EXHAUSTED.
  int max_concurrent_streams = 1024;
  // SIGTERM or SIGINT: not serving, refuse new calls, let running ones finish and their clients read the end
  // for this long, then cancel them.
  absl::Duration drain_timeout = absl::Seconds(30);
};

// The shell every process runs in: listeners, TLS, admission, limits, grpc.health.v1, reflection, metrics
// endpoint, signals, drain. Thread-safe after Start.
class Server {
 public:
  // Blocks SIGTERM and SIGINT for the calling thread and all it creates: call first in main.
  static void BlockSignals();

  // Listens. An address that other machines can reach without TLS, or without anything that tells who calls,
  // is a UsageError unless `insecure`. A port taken or a socket path that cannot be bound is an error that
  // names it. A stale Unix socket (nobody accepts on it) is replaced. Services outlive the server; until
  // SetServing they are not serving, with the cause "starting".
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       const std::vector<grpc::Service*>& services);
  // Cancels what still runs and waits for the handlers to return.
  ~Server();

  // Health of one service by its full name ("isotherm.v1.InferenceService") and of "" (all serving). `cause`
  // is empty while serving; otherwise it shows in logs, in the metric isotherm_serving{service,cause} and in
  // cause(). Once the server drains nothing serves again.
  void SetServing(const std::string& service, bool serving, const std::string& cause);
  std::string cause(const std::string& service) const;

  // Ports of the TCP listeners in the order of options.listen (0 for Unix sockets).
  std::vector<int> ports() const;
  int metrics_port() const;  // 0 for none
  int health_port() const;   // 0 for none
  bool draining() const;

  // Returns after a signal or Shutdown() once drained. `on_drain` runs when the drain begins, before running
  // calls are waited for. A second signal cancels the running calls at once. Call once.
  absl::Status ServeUntilSignal(const std::function<void()>& on_drain = {});
  void Shutdown();  // from any thread; as a signal would

 private:
  Server();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_SERVER_H_
