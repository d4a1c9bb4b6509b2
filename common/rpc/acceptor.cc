#include "common/rpc/acceptor.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"

namespace isotherm::rpc {
namespace {

// Descriptors left to files, shared memory, gRPC's own and connections to other servers.
constexpr int64_t kOtherDescriptors = 256;
// Closing a connection whose request was not read tells its client of a reset instead of what was said
// before: so many are left to their clients to close.
constexpr size_t kLingering = 64;
// How long to leave the kernel's queue alone after accept failed.
constexpr int kPauseMilliseconds = 100;
// How often to look at what connections have sent: 10 Gbit/s bring 60 MB meanwhile. A thousand connections
// cost a millisecond.
constexpr int kLookMilliseconds = 50;
constexpr absl::Duration kWarnEvery = absl::Seconds(10);

// As many connections as descriptors allow, after asking for as many descriptors as this process may have.
int DescriptorsAllow(int connections) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return connections;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur == RLIM_INFINITY) return connections;
  const int64_t room = std::max<int64_t>((static_cast<int64_t>(limit.rlim_cur) - kOtherDescriptors) / 2, 1);
  if (room >= connections) return connections;
  spdlog::warn(
      "at most {} connections at once instead of {}: this process may have {} descriptors (ulimit -n)", room,
      connections, static_cast<int64_t>(limit.rlim_cur));
  return static_cast<int>(room);
}

// An HTTP/2 frame on stream 0 (RFC 9113, 4.1).
std::string Frame(char type, const std::string& payload) {
  const auto length = static_cast<uint32_t>(payload.size());
  const char header[] = {static_cast<char>(length >> 16),
                         static_cast<char>(length >> 8),
                         static_cast<char>(length),
                         type,
                         0,
                         0,
                         0,
                         0,
                         0};
  return std::string(header, sizeof header) + payload;
}

// True now and then: a flood of refusals shall not become a flood of log lines.
bool MayWarn(absl::Time& last) {
  const absl::Time now = absl::Now();
  if (now - last < kWarnEvery) return false;
  last = now;
  return true;
}

// GOAWAY with ENHANCE_YOUR_CALM (RFC 9113, 6.8): clients show its debug data as the reason.
std::string GoAway(const std::string& reason) {
  constexpr char kGoAway = 7, kEnhanceYourCalm = 11;
  std::string payload(8, '\0');  // last stream id, then the error code
  payload.back() = kEnhanceYourCalm;
  return Frame(kGoAway, payload + reason);
}

// SETTINGS come first on every connection.
std::string Farewell(int max_connections) {
  constexpr char kSettings = 4;
  return Frame(kSettings, "") +
         GoAway(absl::StrCat("too many connections: this server takes ", max_connections, " at once"));
}

}  // namespace

std::string SocketPath(const std::string& address) {
  for (const char* scheme : {"unix://", "unix:"}) {
    if (absl::StartsWith(address, scheme)) return address.substr(std::strlen(scheme));
  }
  return "";
}

absl::StatusOr<std::unique_ptr<Acceptor>> Acceptor::Listen(const std::vector<std::string>& addresses,
                                                           int max_connections, mode_t socket_mode,
                                                           const UploadLimit& upload_limit) {
  std::vector<Listener> listeners;
  for (const std::string& address : addresses) {
    Listener listener;
    if (absl::StartsWith(address, "unix:")) {
      const std::string path = SocketPath(address);
      ISOTHERM_ASSIGN_OR_RETURN(listener.listening, base::ListenUnix(path, socket_mode));
      listener.socket_path = path;
    } else {
      ISOTHERM_ASSIGN_OR_RETURN(listener.listening, base::ListenTcp(address));
    }
    listeners.push_back(std::move(listener));
  }
  std::unique_ptr<Acceptor> acceptor(
      new Acceptor(std::move(listeners), DescriptorsAllow(max_connections), upload_limit));
  ISOTHERM_RETURN_IF_ERROR(acceptor->Watch());
  return acceptor;
}

Acceptor::Acceptor(std::vector<Listener> listeners, int max_connections, const UploadLimit& upload_limit)
    : listeners_(std::move(listeners)),
      max_connections_(max_connections),
      upload_limit_(upload_limit),
      open_(
          observe::Registry::Global().GetGauge("isotherm_connections", "Connections open to the listeners.")),
      refused_count_(observe::Registry::Global().GetCounter("isotherm_connections_refused_total",
                                                            "Connections closed at once, being too many.")) {
  for (const Listener& listener : listeners_) ports_.push_back(listener.listening.port);
}

absl::Status Acceptor::Watch() {
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  stop_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const auto watch = [this](int fd) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
    return epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
  };
  bool watched = watch(stop_.get());
  for (const Listener& listener : listeners_) {
    for (const base::UniqueFd& socket : listener.listening.sockets) watched = watched && watch(socket.get());
  }
  return watched ? absl::OkStatus() : absl::ErrnoToStatus(errno, "cannot wait for connections");
}

Acceptor::~Acceptor() {
  Stop();
  open_.Add(-static_cast<double>(connections_.size()));
}

void Acceptor::Start(Receiver receiver) {
  receiver_ = std::move(receiver);
  thread_ = std::thread(&Acceptor::Run, this);
}

void Acceptor::Stop() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(stop_.get(), &one, sizeof one);
  if (thread_.joinable()) thread_.join();
  for (const Listener& listener : listeners_) {
    if (!listener.socket_path.empty()) unlink(listener.socket_path.c_str());
  }
  listeners_.clear();
}

bool Acceptor::AnyUnread() const {
  return std::any_of(connections_.begin(), connections_.end(), [](const auto& each) {
    int bytes = 0;
    return ioctl(each.first, SIOCOUTQ, &bytes) == 0 && bytes > 0;
  });
}

void Acceptor::CutConnections() {
  for (const auto& [second, connection] : connections_) shutdown(second, SHUT_RDWR);
}

void Acceptor::Run() {
  std::map<int, bool> local_by_socket;
  for (const Listener& listener : listeners_) {
    for (const base::UniqueFd& socket : listener.listening.sockets) {
      local_by_socket[socket.get()] = !listener.socket_path.empty();
    }
  }
  std::array<epoll_event, 64> events;
  while (true) {
    const bool look = std::any_of(connections_.begin(), connections_.end(),
                                  [](const auto& each) { return each.second.upload.limited(); });
    const int count =
        epoll_wait(epoll_.get(), events.data(), events.size(), look ? kLookMilliseconds : /*forever=*/-1);
    if (look) CutUploads();
    // Ends first: they make room for what is accepted after them.
    for (int i = 0; i < count; ++i) {
      if (events[i].data.fd == stop_.get()) return;
      Forget(events[i].data.fd);
    }
    for (int i = 0; i < count; ++i) {
      const auto listener = local_by_socket.find(events[i].data.fd);
      if (listener != local_by_socket.end()) AcceptFrom(listener->first, listener->second);
    }
  }
}

void Acceptor::AcceptFrom(int socket, bool local) {
  base::UniqueFd connection(accept4(socket, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (connection.valid()) {
    if (static_cast<int>(connections_.size()) < max_connections_) return Admit(std::move(connection), local);
    return Refuse(std::move(connection));
  }
  // Who hung up before being accepted is no failure of ours.
  if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
  spdlog::warn("cannot accept a connection: {}; trying again", std::strerror(errno));
  usleep(kPauseMilliseconds * 1000);
}

void Acceptor::Admit(base::UniqueFd connection, bool local) {
  base::UniqueFd second(fcntl(connection.get(), F_DUPFD_CLOEXEC, 0));
  // No events but those always reported: both directions shut down, which gRPC does before it closes.
  epoll_event event{.events = 0, .data = {.fd = second.get()}};
  if (!second.valid() || epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, second.get(), &event) != 0) return;
  const int number = second.get();
  connections_.emplace(number, Connection{std::move(second), UploadBudget(number, upload_limit_)});
  open_.Add(1);
  receiver_(std::move(connection), local);
}

void Acceptor::Forget(int second) {
  const auto connection = connections_.find(second);
  if (connection == connections_.end()) return;
  // Closing does not suffice: gRPC's descriptor of the same connection may live a moment longer.
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, second, nullptr);
  connections_.erase(connection);
  open_.Add(-1);
}

void Acceptor::Refuse(base::UniqueFd connection) {
  refused_count_.Add();
  const std::string farewell = Farewell(max_connections_);
  // As much as the socket takes without waiting; who expects TLS does not understand it and sees a broken
  // connection.
  [[maybe_unused]] const ssize_t sent =
      send(connection.get(), farewell.data(), farewell.size(), MSG_NOSIGNAL);
  shutdown(connection.get(), SHUT_WR);
  refused_connections_.push_back(std::move(connection));
  if (refused_connections_.size() > kLingering) refused_connections_.pop_front();
  if (MayWarn(last_refusal_warning_))
    spdlog::warn("refusing connections: {} are open (--max-connections)", connections_.size());
}

void Acceptor::CutUploads() {
  for (const auto& [second, connection] : connections_) {
    if (!connection.upload.Exceeded()) continue;
    // Between two frames of gRPC's, which writes whole ones unless the client does not read.
    const std::string farewell = GoAway("more was sent than calls have arrived for (--max-upload-mib)");
    [[maybe_unused]] const ssize_t sent = send(second, farewell.data(), farewell.size(), MSG_NOSIGNAL);
    // The event of its end follows, and gRPC gives up what it has read.
    shutdown(second, SHUT_RDWR);
    if (MayWarn(last_upload_warning_)) {
      spdlog::warn(
          "closing a connection that sent more than {} MiB without calls to account for it "
          "(--max-upload-mib)",
          upload_limit_.bytes >> 20);
    }
  }
}

}  // namespace isotherm::rpc
