#include "common/rpc/upload_budget.h"

#include <linux/tcp.h>  // the C library's tcp_info ends before tcpi_bytes_received
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <cstddef>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"

namespace isotherm::rpc {
namespace {

constexpr uint32_t kPorts = 1 << 16;

std::array<std::atomic<uint32_t>, kPorts> arrived_calls_by_port{};

// Of the other end; 0 where it has none.
int PeerPort(int connection) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (getpeername(connection, reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
  if (address.ss_family == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
  if (address.ss_family == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
  return 0;
}

// 0 on kernels older than 4.1, which do not count.
int64_t BytesReceived(int connection) {
  tcp_info info{};
  socklen_t size = sizeof info;
  if (getsockopt(connection, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return 0;
  return static_cast<int64_t>(info.tcpi_bytes_received);
}

}  // namespace

UploadBudget::UploadBudget(int connection, const UploadLimit& limit)
    : connection_(connection), limit_(limit), port_(PeerPort(connection)) {
  calls_before_ = arrived_calls_by_port[port_].load(std::memory_order_relaxed);
}

bool UploadBudget::Exceeded() const {
  if (!limited()) return false;
  const uint32_t calls = arrived_calls_by_port[port_].load(std::memory_order_relaxed) - calls_before_;
  return BytesReceived(connection_) > limit_.bytes + calls * limit_.bytes_per_call;
}

void CountArrivedCall(const std::string& peer) {
  const size_t colon = peer.rfind(':');
  uint32_t port = 0;
  if (colon == peer.npos || !absl::SimpleAtoi(absl::string_view(peer).substr(colon + 1), &port)) return;
  if (port < kPorts) arrived_calls_by_port[port].fetch_add(1, std::memory_order_relaxed);
}

}  // namespace isotherm::rpc
