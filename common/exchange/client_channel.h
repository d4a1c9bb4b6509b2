#ifndef ISOTHERM_COMMON_EXCHANGE_CLIENT_CHANNEL_H_
#define ISOTHERM_COMMON_EXCHANGE_CLIENT_CHANNEL_H_

#include <array>
#include <cstdint>
#include <memory>

#include "common/exchange/channel.h"
#include "common/exchange/client_stream.h"
#include "common/exchange/region_layout.h"

namespace isotherm::exchange {

// What both transports share on the client: the order of calls, the first error latched, the checks and the
// accounts. A transport says where the bytes go.
class ClientChannel : public Channel {
 public:
  void Note(const worker::v1::SequenceNote& note) final;
  absl::StatusOr<RequestBuffers> Begin(const RequestHeader& header) final;
  absl::Status Send(int64_t gate_value_count) final;
  absl::StatusOr<Answer> Await() final;
  uint32_t sequence() const final { return sequence_; }
  void Advance(uint32_t sequence, int64_t rows, int64_t gate_values) final;
  absl::Status Fail(const absl::Status& error) final { return Latch(error); }
  int64_t bytes_exchanged() const final { return bytes_exchanged_; }

 protected:
  struct Arrival {
    Descriptor descriptor;
    const float* y = nullptr;
    int64_t at_ns = 0;  // MonotonicNanoseconds when the answer was there
  };

  ClientChannel(const ClientOptions& options, uint64_t generation, std::unique_ptr<ClientStream> stream);

  virtual RequestBuffers Prepare(const Descriptor& request) = 0;
  virtual absl::Status Publish(const Descriptor& request) = 0;
  virtual absl::StatusOr<Arrival> Receive(const Descriptor& request) = 0;
  // The channel is dead from now on.
  virtual void Kill() = 0;

  absl::Status Latch(absl::Status error);
  bool dead() const { return !error_.ok(); }

  const Geometry geometry_;
  const absl::Duration timeout_;
  const absl::Duration spin_;
  const uint64_t generation_;
  std::unique_ptr<ClientStream> stream_;

 private:
  struct Exchange {
    Descriptor request{};
    int64_t sent_at_ns = 0;
  };
  // What is wrong with calling `call` now.
  absl::Status Require(bool its_turn, const char* call);
  Exchange& exchange(uint32_t sequence) { return exchanges_[sequence % kSlots]; }

  absl::Status error_;
  bool begun_ = false;     // the last one begun is not sent
  uint32_t sequence_ = 0;  // of the last one begun
  uint32_t awaited_ = 0;   // of the last one whose answer was taken
  std::array<Exchange, kSlots> exchanges_;
  int64_t bytes_exchanged_ = 0;
};

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_CLIENT_CHANNEL_H_
