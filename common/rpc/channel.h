#ifndef ISOTHERM_COMMON_RPC_CHANNEL_H_
#define ISOTHERM_COMMON_RPC_CHANNEL_H_

#include <grpcpp/channel.h>

#include <memory>
#include <string>

namespace isotherm::rpc {

// Largest message that any process sends or accepts unless told otherwise.
inline constexpr int kDefaultMaxMessageBytes = 64 << 20;

// How often a silent connection is probed while calls run on it, so that a peer that vanished without a word
// is noticed.
inline constexpr int kKeepaliveMilliseconds = 20'000;
inline constexpr int kKeepaliveTimeoutMilliseconds = 10'000;

// A channel with the message limits and keepalive that every process uses. "unix:/path" or "host:port". It
// has a connection of its own and tries again at least every second, so that a restarted server is found at
// once; no proxy is asked.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_CHANNEL_H_
