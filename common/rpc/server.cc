#include "common/rpc/server.h"

#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>
#include <grpcpp/impl/server_initializer.h>
#include <grpcpp/resource_quota.h>
#include <signal.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/command_line.h"
#include "common/base/listen.h"
#include "common/base/status_macros.h"
#include "common/rpc/acceptor.h"
#include "common/rpc/admission.h"
#include "common/rpc/builtin_calls.h"
#include "common/rpc/health.h"
#include "common/rpc/health_listener.h"
#include "common/rpc/malformed_request.h"
#include "common/rpc/stop_event.h"

namespace isotherm::rpc {
namespace {

// While draining, how often the end of the last running call is looked for, and for how long none must have
// run: a call may have been accepted and not yet have reached Handle, or have left it and not yet sent its
// status.
constexpr absl::Duration kDrainTick = absl::Milliseconds(100);
constexpr absl::Duration kIdle = absl::Milliseconds(200);
// How long after the last call clients have to read what it sent. One that is slower is stopped or gone.
constexpr absl::Duration kLinger = absl::Seconds(2);

// Learns the names of the services that a server registers; the builder tells them to its plugins alone.
class ServiceNames final : public grpc::ServerBuilderPlugin {
 public:
  explicit ServiceNames(std::vector<std::string>* names) : names_(names) {}
  std::string name() override { return "isotherm_service_names"; }
  void InitServer(grpc::ServerInitializer*) override {}
  void Finish(grpc::ServerInitializer* initializer) override { *names_ = *initializer->GetServiceList(); }
  void ChangeArguments(const std::string&, void*) override {}

 private:
  std::vector<std::string>* const names_;
};

class ServiceNamesOption final : public grpc::ServerBuilderOption {
 public:
  explicit ServiceNamesOption(std::vector<std::string>* names) : names_(names) {}
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    plugins->push_back(std::make_unique<ServiceNames>(names_));
  }

 private:
  std::vector<std::string>* const names_;
};

// gRPC's own log lines go where all others go.
void LogFromGrpc(gpr_log_func_args* line) {
  const auto level = line->severity == GPR_LOG_SEVERITY_ERROR ? spdlog::level::warn : spdlog::level::debug;
  spdlog::log(level, "grpc: {}", line->message);
}

void SetUpGrpcOnce() {
  static std::once_flag once;
  std::call_once(once, [] {
    gpr_set_log_function(&LogFromGrpc);
    RedirectProtobufLog();
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
}

// Whether `address` is one, and may be listened on with these options. Loopback addresses and Unix sockets,
// which have permissions, always may.
absl::Status CheckExposure(const std::string& address, const ServerOptions& options) {
  if (const absl::Status known = base::CheckAddress(address); !known.ok()) {
    return base::UsageError(absl::StrCat("--listen: ", std::string(known.message())));
  }
  if (options.insecure || absl::StartsWith(address, "unix:") || base::IsLoopback(address)) {
    return absl::OkStatus();
  }
  const std::string otherwise = ", listen on 127.0.0.1 or a Unix socket, or say --insecure";
  if (options.tls.empty()) {
    return base::UsageError(absl::StrCat("--listen=", address,
                                         " can be reached from other machines in plain text: give --tls-cert "
                                         "and --tls-key",
                                         otherwise));
  }
  if (options.tls.ca.empty() && options.api_keys.empty()) {
    return base::UsageError(
        absl::StrCat("--listen=", address,
                     " lets in everybody who can reach it: give --tls-client-ca, in the gateway "
                     "also --api-keys",
                     otherwise));
  }
  return absl::OkStatus();
}

int Milliseconds(absl::Duration duration) { return static_cast<int>(absl::ToInt64Milliseconds(duration)); }

void Configure(const ServerOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  // The limit is for what others send: an answer may be larger than any request.
  builder.SetMaxSendMessageSize(std::max(options.max_message_bytes, kDefaultMaxMessageBytes));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, Milliseconds(options.handshake_timeout));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, Milliseconds(options.idle_timeout));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMilliseconds);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMilliseconds);
  // Half of what clients send, so that no clock's drift makes a probe look like an attack.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kKeepaliveMilliseconds / 2);
  // One queue, polled by one idle thread; every running call holds a thread more.
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetResourceQuota(grpc::ResourceQuota("calls")
                               .SetMaxThreads(options.max_concurrent_streams + 1)
                               .Resize(static_cast<size_t>(options.max_buffer_bytes)));
}

}  // namespace

struct Server::Impl {
  ServerOptions options;
  StopEvent stop;
  std::unique_ptr<Acceptor> acceptor;
  std::optional<CertificateMonitor> certificates;
  std::unique_ptr<observe::Exposer> exposer;
  // Hand accepted connections to `server`; `local` those of Unix sockets.
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> tcp, local;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<HealthListener> health_listener;
  std::optional<Health> health;  // refers to `server` and `health_listener`

  absl::Status Listen(const std::vector<grpc::Service*>& services);
  void WaitForRunningCalls();
  bool WaitForLocalCalls(absl::Time deadline);
};

Server::Server() : impl_(std::make_unique<Impl>()) {}

Server::~Server() {
  impl_->acceptor.reset();
  if (impl_->server) impl_->server->Shutdown(std::chrono::system_clock::now());
}

void Server::BlockSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      const std::vector<grpc::Service*>& services) {
  if (options.listen.empty()) return absl::InvalidArgumentError("no address to listen on");
  SetUpGrpcOnce();
  std::unique_ptr<Server> server(new Server);
  Impl& impl = *server->impl_;
  impl.options = options;
  ISOTHERM_RETURN_IF_ERROR(impl.stop.Open());
  if (!options.metrics_listen.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(impl.exposer, observe::Exposer::Start(options.metrics_listen));
  }
  if (!options.health_listen.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(impl.health_listener, HealthListener::Start(options.health_listen));
  }
  ISOTHERM_RETURN_IF_ERROR(impl.Listen(services));
  return server;
}

absl::Status Server::Impl::Listen(const std::vector<grpc::Service*>& services) {
  for (const std::string& address : options.listen) {
    ISOTHERM_RETURN_IF_ERROR(CheckExposure(address, options));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const auto credentials, MakeServerCredentials(options.tls));
  if (!options.tls.empty()) certificates.emplace(options.tls);
  AdmissionRules rules = {.client_certificates = !options.tls.ca.empty()};
  if (!options.api_keys.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(rules.keys, KeyRing::Open(options.api_keys));
  }
  SetAdmissionRules(std::move(rules));
  ISOTHERM_ASSIGN_OR_RETURN(acceptor,
                            Acceptor::Listen(options.listen, options.max_connections, options.socket_mode,
                                             {options.max_upload_bytes, options.max_message_bytes}));

  grpc::ServerBuilder builder;
  Configure(options, builder);
  std::vector<std::string> names;
  builder.SetOption(std::make_unique<ServiceNamesOption>(&names));
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(MakeBuiltinCallCounter());
  interceptors.push_back(MakeMalformedRequestNamer());
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  for (grpc::Service* service : services) builder.RegisterService(service);
  using Kind = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
  tcp = builder.experimental().AddExternalConnectionAcceptor(Kind::FROM_FD, credentials);
  local =
      builder.experimental().AddExternalConnectionAcceptor(Kind::FROM_FD, grpc::InsecureServerCredentials());
  server = builder.BuildAndStart();
  if (!server) return absl::InternalError("gRPC could not start the server");
  acceptor->Start([this](base::UniqueFd connection, bool is_local) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters parameters;
    parameters.fd = connection.release();
    (is_local ? local : tcp)->HandleNewConnection(&parameters);
  });

  std::erase_if(names, [](const std::string& name) { return absl::StartsWith(name, "grpc."); });
  std::vector<grpc::HealthCheckServiceInterface*> shown = {server->GetHealthCheckService()};
  if (health_listener) shown.push_back(health_listener->statuses());
  health.emplace(shown, names);
  const std::vector<int> ports = acceptor->ports();
  for (size_t i = 0; i < ports.size(); ++i) {
    const char* security = options.tls.empty() ? "" : options.tls.ca.empty() ? ", TLS" : ", mutual TLS";
    spdlog::info("listening on {}{}", options.listen[i],
                 ports[i] == 0 ? "" : absl::StrCat(" (port ", ports[i], security, ")"));
  }
  return absl::OkStatus();
}

void Server::SetServing(const std::string& service, bool serving, const std::string& cause) {
  impl_->health->SetServing(service, serving, cause);
}

std::string Server::cause(const std::string& service) const { return impl_->health->cause(service); }
std::vector<int> Server::ports() const { return impl_->acceptor->ports(); }
int Server::metrics_port() const { return impl_->exposer ? impl_->exposer->port() : 0; }
int Server::health_port() const { return impl_->health_listener ? impl_->health_listener->port() : 0; }
bool Server::draining() const { return impl_->health->draining(); }

absl::Status Server::ServeUntilSignal(const std::function<void()>& on_drain) {
  while (!impl_->stop.Wait(absl::InfiniteDuration())) {
  }
  spdlog::info("draining: {} calls running, waiting at most {}", RunningCalls(),
               absl::FormatDuration(impl_->options.drain_timeout));
  impl_->acceptor->Stop();
  impl_->health->BeginDrain();
  if (on_drain) on_drain();
  impl_->WaitForRunningCalls();
  spdlog::info("drained");
  return absl::OkStatus();
}

// gRPC closes a connection as soon as the last call on it has ended and its client has answered GOAWAY. A
// client that has not read to the end by then may lose it: its next write fails, and its gRPC library gives
// up the connection with all that came in. So while calls from this machine run, whose clients' writes fail
// at once, nobody is sent GOAWAY before they have read the end: new calls are refused until then. Without
// such calls clients elsewhere are sent it at once, because there may be another server for their next calls.
void Server::Impl::WaitForRunningCalls() {
  const absl::Time deadline = absl::Now() + options.drain_timeout;
  bool told_again = !WaitForLocalCalls(deadline);
  std::atomic<bool> finished = false;
  std::thread stopper([this, &finished] {
    server->Shutdown();  // sends GOAWAY and waits for calls and connections to end
    finished = true;
    stop.Raise();
  });
  // Calls outside Handle, such as health watchers, would last until the time-out: they end when nothing else
  // runs.
  absl::Time last_call = absl::Now();
  while (!finished && !told_again && absl::Now() < deadline && absl::Now() - last_call < kIdle) {
    told_again = stop.Wait(kDrainTick);
    if (RunningCalls() > 0) last_call = absl::Now();
  }
  if (!finished) {
    if (RunningCalls() > 0) spdlog::warn("cancelling {} calls", RunningCalls());
    grpc_server_cancel_all_calls(server->c_server());
    // What is being written goes out yet, if its client reads.
    stop.Wait(told_again ? kIdle : std::max(kIdle, deadline - absl::Now()));
    acceptor->CutConnections();
  }
  stopper.join();
}

// False if it was told to stop again, or time was up, before they had ended.
bool Server::Impl::WaitForLocalCalls(absl::Time deadline) {
  if (RunningLocalCalls() == 0) return true;
  RefuseNewCalls();
  absl::Duration idle;
  for (absl::Time last_call = absl::Now(); idle < kIdle || (idle < kLinger && acceptor->AnyUnread());
       idle = absl::Now() - last_call) {
    if (stop.Wait(kDrainTick) || absl::Now() >= deadline) return false;
    if (RunningLocalCalls() > 0) last_call = absl::Now();
  }
  return true;
}

void Server::Shutdown() { impl_->stop.Raise(); }

}  // namespace isotherm::rpc
