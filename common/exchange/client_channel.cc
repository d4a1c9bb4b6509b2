#include "common/exchange/client_channel.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/exchange/doorbell.h"
#include "common/exchange/request.h"

namespace isotherm::exchange {

ClientChannel::ClientChannel(const ClientOptions& options, uint64_t generation,
                             std::unique_ptr<ClientStream> stream)
    : geometry_(options.geometry),
      timeout_(options.exchange_timeout),
      spin_(absl::Microseconds(options.spin_us)),
      generation_(generation),
      stream_(std::move(stream)) {}

absl::Status ClientChannel::Latch(absl::Status error) {
  if (!dead()) {
    error_ = std::move(error);
    Kill();
  }
  return error_;
}

absl::Status ClientChannel::Require(bool its_turn, const char* call) {
  if (dead() || its_turn) return error_;
  return Latch(absl::FailedPreconditionError(absl::StrCat("exchange: ", call, " out of turn")));
}

void ClientChannel::Note(const worker::v1::SequenceNote& note) {
  if (dead()) return;
  worker::v1::ExchangeRequest message;
  *message.mutable_note() = note;
  if (absl::Status status = stream_->Write(message, timeout_); !status.ok())
    Latch(std::move(status)).IgnoreError();
}

absl::StatusOr<RequestBuffers> ClientChannel::Begin(const RequestHeader& header) {
  ISOTHERM_RETURN_IF_ERROR(Require(!begun_ && sequence_ - awaited_ < kSlots, "Begin"));
  absl::StatusOr<Descriptor> request = MakeDescriptor(header, geometry_, generation_, ++sequence_);
  if (!request.ok()) return Latch(request.status());
  begun_ = true;
  exchange(sequence_).request = *request;
  return Prepare(*request);
}

absl::Status ClientChannel::Send(int64_t gate_value_count) {
  ISOTHERM_RETURN_IF_ERROR(Require(begun_, "Send"));
  begun_ = false;
  Descriptor& request = exchange(sequence_).request;
  const bool has_gate_values = (request.flags & kFlagGateValues) != 0;
  const int64_t most = has_gate_values ? request.rows * geometry_.ffn : 0;
  if (gate_value_count < 0 || gate_value_count > most) {
    return Latch(absl::InvalidArgumentError(
        absl::StrCat("exchange: ", gate_value_count, " gate values, there is room for ", most)));
  }
  request.gate_value_count = static_cast<uint32_t>(gate_value_count);
  exchange(sequence_).sent_at_ns = MonotonicNanoseconds();
  if (absl::Status status = Publish(request); !status.ok()) return Latch(std::move(status));
  bytes_exchanged_ += static_cast<int64_t>(sizeof(Descriptor)) +
                      MakeFrameLayout(geometry_, request.rows, gate_value_count).bytes;
  return absl::OkStatus();
}

void ClientChannel::Advance(uint32_t sequence, int64_t rows, int64_t gate_values) {
  const int64_t exchanges = sequence - sequence_;
  const int64_t frame = MakeFrameLayout(geometry_, rows, 0).bytes + AnswerBytes(geometry_, rows);
  bytes_exchanged_ += exchanges * (2 * static_cast<int64_t>(sizeof(Descriptor)) + frame) +
                      gate_values * static_cast<int64_t>(sizeof(float));
  sequence_ = awaited_ = sequence;
}

absl::StatusOr<Channel::Answer> ClientChannel::Await() {
  ISOTHERM_RETURN_IF_ERROR(Require(!begun_ && awaited_ != sequence_, "Await"));
  const auto& [request, sent_at_ns] = exchange(++awaited_);
  const int64_t called_at_ns = MonotonicNanoseconds();
  absl::StatusOr<Arrival> arrival = Receive(request);
  if (!arrival.ok()) return Latch(arrival.status());
  if (absl::Status status = CheckEcho(request, arrival->descriptor, geometry_); !status.ok())
    return Latch(std::move(status));
  const int64_t now_ns = MonotonicNanoseconds();
  bytes_exchanged_ += static_cast<int64_t>(sizeof(Descriptor)) + AnswerBytes(geometry_, request.rows);
  // The arrival may come from the peer's clock.
  const int64_t arrived_at_ns = std::clamp(arrival->at_ns, sent_at_ns, now_ns);
  return Answer{.y = arrival->y,
                .computed = arrival->descriptor.computed,
                .active = arrival->descriptor.active,
                .latency = absl::Nanoseconds(arrived_at_ns - sent_at_ns),
                .wait = absl::Nanoseconds(now_ns - called_at_ns)};
}

}  // namespace isotherm::exchange
