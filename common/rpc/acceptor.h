#ifndef ISOTHERM_COMMON_RPC_ACCEPTOR_H_
#define ISOTHERM_COMMON_RPC_ACCEPTOR_H_

#include <sys/types.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/listen.h"
#include "common/base/unique_fd.h"
#include "common/observe/metrics.h"
#include "common/rpc/upload_budget.h"

namespace isotherm::rpc {

// The path of "unix:/path" or "unix:///path"; empty for any other address.
std::string SocketPath(const std::string& address);

// The listening sockets of a server. It accepts in gRPC's place, because gRPC 1.51 cannot bound connections
// and stops listening for good when accept fails once, as it does when descriptors run out.
//
// It learns that a connection has ended from a second descriptor of it, so that each takes two.
class Acceptor {
 public:
  // Takes over one accepted connection, non-blocking; `local` if it came through a Unix socket.
  using Receiver = std::function<void(base::UniqueFd connection, bool local)>;

  // Listens on all addresses; connections wait in the kernel until Start. At most `max_connections` are open
  // at once, fewer where descriptors do not suffice; one more is told so in HTTP/2 and closed, and so is one
  // that exceeds the upload limit. Files of Unix sockets get the permissions `socket_mode`.
  static absl::StatusOr<std::unique_ptr<Acceptor>> Listen(const std::vector<std::string>& addresses,
                                                          int max_connections, mode_t socket_mode,
                                                          const UploadLimit& upload_limit);
  ~Acceptor();

  // Ports in the order of the addresses (0 for Unix sockets).
  std::vector<int> ports() const { return ports_; }

  // Begins to accept, on a thread of its own.
  void Start(Receiver receiver);
  // When it returns, nobody can connect any more: listening sockets are closed and the files of Unix sockets
  // removed. Connections live on.
  void Stop();
  // After Stop: whether a client has yet to read something of what it was sent. Of TCP no more is known than
  // that the client's machine has it.
  bool AnyUnread() const;
  // After Stop: ends all connections at once, also one whose client does not read, on which gRPC would wait
  // to write the rest for as long as the client likes.
  void CutConnections();

 private:
  struct Listener {
    base::ListeningSockets listening;
    std::string socket_path;  // empty for TCP
  };

  struct Connection {
    base::UniqueFd second;
    UploadBudget upload;
  };

  Acceptor(std::vector<Listener> listeners, int max_connections, const UploadLimit& upload_limit);
  absl::Status Watch();
  void Run();
  void AcceptFrom(int socket, bool local);
  void Admit(base::UniqueFd connection, bool local);
  void Forget(int second);
  void Refuse(base::UniqueFd connection);
  void CutUploads();

  std::vector<Listener> listeners_;
  std::vector<int> ports_;
  const int max_connections_;
  const UploadLimit upload_limit_;
  const observe::Gauge open_;
  const observe::Counter refused_count_;
  base::UniqueFd epoll_;
  base::UniqueFd stop_;
  Receiver receiver_;
  std::thread thread_;
  // On the thread alone: open connections by the number of their second descriptor.
  std::map<int, Connection> connections_;
  std::deque<base::UniqueFd> refused_connections_;
  absl::Time last_refusal_warning_ = absl::InfinitePast();
  absl::Time last_upload_warning_ = absl::InfinitePast();
};

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_ACCEPTOR_H_
