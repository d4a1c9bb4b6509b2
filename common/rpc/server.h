#ifndef ISOTHERM_COMMON_RPC_SERVER_H_
#define ISOTHERM_COMMON_RPC_SERVER_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/observe/metrics.h"

namespace isotherm::rpc {

struct ServerOptions {
  // gRPC addresses: "unix:/path/socket" or "host:port" (port 0 picks one).
  std::vector<std::string> listen;
  std::string metrics_listen;  // "" for none
  int max_message_bytes = 64 << 20;
  int max_concurrent_streams = 1024;
  // SIGTERM or SIGINT: not serving, refuse new calls, let running ones finish for this long, then cancel them.
  absl::Duration drain_timeout = absl::Seconds(30);
};

// The shell every process runs in: listeners, grpc.health.v1, reflection, metrics endpoint, signals, drain.
// Thread-safe after Start.
class Server {
 public:
  // Blocks SIGTERM and SIGINT for the calling thread and all it creates: call first in main.
  static void BlockSignals();

  // Listens. A port taken or a socket path that cannot be bound is an error that names it. A stale Unix socket (nobody
  // accepts on it) is replaced. Services outlive the server.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       const std::vector<grpc::Service*>& services);
  ~Server();

  // Health of one service by its full name ("isotherm.v1.InferenceService") and of "" (all serving). `cause` is empty while
  // serving; otherwise it shows in logs, in the metric isotherm_serving{service,cause} and in cause().
  void SetServing(const std::string& service, bool serving, const std::string& cause);
  std::string cause(const std::string& service) const;

  // Ports of the TCP listeners in the order of options.listen (0 for Unix sockets).
  std::vector<int> ports() const;
  int metrics_port() const;
  bool draining() const;

  // Returns after a signal or Shutdown() once drained. `on_drain` runs when the drain begins, before running calls are waited
  // for.
  absl::Status ServeUntilSignal(const std::function<void()>& on_drain = {});
  void Shutdown();  // from any thread; as a signal would

 private:
  Server();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

// Status with google.rpc details: RetryInfo for a full queue; BadRequest naming the field.
grpc::Status ResourceExhausted(const std::string& message, absl::Duration retry_after);
absl::Status InvalidField(const std::string& field, const std::string& problem);

// Runs a handler: catches exceptions (INTERNAL), maps the status, counts isotherm_rpc_total{method,code} and observes
// isotherm_rpc_seconds{method}. Every handler body goes through it.
grpc::Status Handle(const char* method, grpc::ServerContext* context, const std::function<absl::Status()>& body);

// A channel with the message limits, keepalive and no-delay every process uses. "unix:..." or "host:port".
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

// Exit codes of every binary: 0 drained, 1 runtime failure, 2 usage. Prints the reason as the last line on stderr.
int ExitCode(const absl::Status& status);

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_SERVER_H_
