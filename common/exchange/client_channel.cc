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

absl::Status ClientChannel::TakeTurn(Turn turn, const char* call) {
  if (dead()) return error_;
  if (turn != turn_)
    return Latch(absl::FailedPreconditionError(absl::StrCat("exchange: ", call, " out of turn")));
  turn_ = turn == Turn::kBegin ? Turn::kSend : turn == Turn::kSend ? Turn::kAwait : Turn::kBegin;
  return absl::OkStatus();
}

void ClientChannel::Note(const worker::v1::SequenceNote& note) {
  if (dead()) return;
  worker::v1::ExchangeRequest message;
  *message.mutable_note() = note;
  if (absl::Status status = stream_->Write(message, timeout_); !status.ok())
    Latch(std::move(status)).IgnoreError();
}

absl::StatusOr<RequestBuffers> ClientChannel::Begin(const RequestHeader& header) {
  ISOTHERM_RETURN_IF_ERROR(TakeTurn(Turn::kBegin, "Begin"));
  absl::StatusOr<Descriptor> request = MakeDescriptor(header, geometry_, generation_, ++sequence_);
  if (!request.ok()) return Latch(request.status());
  request_ = *request;
  return Prepare(request_);
}

absl::Status ClientChannel::Send(int64_t gate_value_count) {
  ISOTHERM_RETURN_IF_ERROR(TakeTurn(Turn::kSend, "Send"));
  const bool has_gate_values = (request_.flags & kFlagGateValues) != 0;
  const int64_t most = has_gate_values ? request_.rows * geometry_.ffn : 0;
  if (gate_value_count < 0 || gate_value_count > most) {
    return Latch(absl::InvalidArgumentError(
        absl::StrCat("exchange: ", gate_value_count, " gate values, there is room for ", most)));
  }
  request_.gate_value_count = static_cast<uint32_t>(gate_value_count);
  sent_at_ns_ = MonotonicNanoseconds();
  if (absl::Status status = Publish(request_); !status.ok()) return Latch(std::move(status));
  bytes_exchanged_ += static_cast<int64_t>(sizeof(Descriptor)) +
                      MakeFrameLayout(geometry_, request_.rows, gate_value_count).bytes;
  return absl::OkStatus();
}

void ClientChannel::Advance(uint32_t sequence, int64_t rows, int64_t gate_values) {
  const int64_t exchanges = sequence - sequence_;
  const int64_t frame = MakeFrameLayout(geometry_, rows, 0).bytes + AnswerBytes(geometry_, rows);
  bytes_exchanged_ += exchanges * (2 * static_cast<int64_t>(sizeof(Descriptor)) + frame) +
                      gate_values * static_cast<int64_t>(sizeof(float));
  sequence_ = sequence;
}

absl::StatusOr<Channel::Answer> ClientChannel::Await() {
  ISOTHERM_RETURN_IF_ERROR(TakeTurn(Turn::kAwait, "Await"));
  const int64_t called_at_ns = MonotonicNanoseconds();
  absl::StatusOr<Arrival> arrival = Receive(request_);
  if (!arrival.ok()) return Latch(arrival.status());
  if (absl::Status status = CheckEcho(request_, arrival->descriptor, geometry_); !status.ok())
    return Latch(std::move(status));
  const int64_t now_ns = MonotonicNanoseconds();
  bytes_exchanged_ += static_cast<int64_t>(sizeof(Descriptor)) + AnswerBytes(geometry_, request_.rows);
  // The arrival may come from the peer's clock.
  const int64_t arrived_at_ns = std::clamp(arrival->at_ns, sent_at_ns_, now_ns);
  return Answer{.y = arrival->y,
                .computed = arrival->descriptor.computed,
                .active = arrival->descriptor.active,
                .latency = absl::Nanoseconds(arrived_at_ns - sent_at_ns_),
                .wait = absl::Nanoseconds(now_ns - called_at_ns)};
}

}  // namespace isotherm::exchange
