#include "common/exchange/inline_client.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/exchange/frame.h"

namespace isotherm::exchange {

InlineClient::InlineClient(const ClientOptions& options, std::unique_ptr<ClientStream> stream)
    : ClientChannel(options, /*generation=*/0, std::move(stream)) {
  if (!geometry_.bf16) return;
  x_.resize(static_cast<size_t>(geometry_.max_rows * geometry_.hidden));
  y_.resize(x_.size());
}

void InlineClient::SendStep(uint64_t step, DescriptorFlag flag) {
  if (dead()) return;
  step_ = step;
  const Descriptor descriptor{.step = step, .flags = flag};
  PutDescriptor(descriptor, step_message_.mutable_frame());
  if (absl::Status status = stream_->Write(step_message_, timeout_); !status.ok())
    Latch(std::move(status)).IgnoreError();
}

RequestBuffers InlineClient::Prepare(const Descriptor& request) {
  const bool has_gate_values = (request.flags & kFlagGateValues) != 0;
  const FrameLayout layout =
      MakeFrameLayout(geometry_, request.rows, has_gate_values ? request.rows * geometry_.ffn : 0);
  std::string* payload = request_.mutable_frame()->mutable_payload();
  // Steps of one size reuse the buffer as it is; only growth is filled with zeros.
  payload->resize(static_cast<size_t>(layout.bytes));
  return {.x = geometry_.bf16 ? x_.data() : reinterpret_cast<float*>(payload->data()),
          .masks = reinterpret_cast<uint64_t*>(payload->data() + layout.masks),
          .gate_values =
              has_gate_values ? reinterpret_cast<float*>(payload->data() + layout.gate_values) : nullptr};
}

absl::Status InlineClient::Publish(const Descriptor& request) {
  worker::v1::ExchangeFrame* frame = request_.mutable_frame();
  PutDescriptor(request, frame);
  if (geometry_.bf16) {
    EncodeActivations(x_.data(), request.rows * geometry_.hidden, frame->mutable_payload()->data());
  }
  frame->mutable_payload()->resize(
      static_cast<size_t>(MakeFrameLayout(geometry_, request.rows, request.gate_value_count).bytes));
  return stream_->Write(request_, timeout_);
}

absl::StatusOr<ClientChannel::Arrival> InlineClient::Receive(const Descriptor& request) {
  ISOTHERM_ASSIGN_OR_RETURN(ClientStream::Incoming incoming, stream_->Read(timeout_, spin_));
  response_ = std::move(incoming.message);
  const worker::v1::ExchangeFrame& frame = response_.frame();
  const std::optional<Descriptor> descriptor = TakeDescriptor(frame);
  const auto expected = static_cast<size_t>(AnswerBytes(geometry_, request.rows));
  if (!descriptor.has_value() || frame.payload().size() != expected) {
    return absl::DataLossError(absl::StrCat("the CPU worker's answer has ", frame.payload().size(),
                                            " bytes of results, expected ", expected, ", and ",
                                            descriptor.has_value() ? "a" : "no", " descriptor"));
  }
  if (geometry_.bf16) DecodeActivations(frame.payload().data(), request.rows * geometry_.hidden, y_.data());
  return Arrival{.descriptor = *descriptor,
                 .y = geometry_.bf16 ? y_.data() : reinterpret_cast<const float*>(frame.payload().data()),
                 .at_ns = incoming.arrived_at_ns};
}

}  // namespace isotherm::exchange
