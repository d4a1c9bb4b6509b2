#include "common/exchange/inline_server.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/exchange/frame.h"

namespace isotherm::exchange {
namespace {

// `frame` keeps its buffer from one answer to the next.
absl::Status Answer(const Descriptor& descriptor, uint32_t sequence, const std::string& payload,
                    Session* session, worker::v1::ExchangeFrame* frame) {
  const Geometry& geometry = session->geometry();
  ServerRequest request;
  ISOTHERM_ASSIGN_OR_RETURN(request.header, session->Check(descriptor, /*generation=*/0, sequence));
  const FrameLayout layout = MakeFrameLayout(geometry, request.header.rows, descriptor.gate_value_count);
  if (payload.size() != static_cast<size_t>(layout.bytes)) {
    return absl::InvalidArgumentError(absl::StrCat("exchange request: ", payload.size(),
                                                   " bytes of payload for ", request.header.rows,
                                                   " rows, expected ", layout.bytes));
  }
  // Strings of more than a few bytes come from the allocator, whose memory is aligned for every scalar.
  request.x = reinterpret_cast<const float*>(payload.data());
  request.masks = reinterpret_cast<const uint64_t*>(payload.data() + layout.masks);
  if (request.header.has_gate_values) {
    request.gate_values = reinterpret_cast<const float*>(payload.data() + layout.gate_values);
  }
  std::string* y = frame->mutable_payload();
  y->resize(static_cast<size_t>(AnswerBytes(geometry, request.header.rows)));
  ISOTHERM_ASSIGN_OR_RETURN(const Descriptor answer,
                            session->Execute(descriptor, request, reinterpret_cast<float*>(y->data())));
  PutDescriptor(answer, frame);
  return absl::OkStatus();
}

}  // namespace

absl::Status ServeInline(ServerStream* stream, Session* session) {
  worker::v1::ExchangeResponse opened;
  opened.mutable_opened()->set_transport(worker::v1::EXCHANGE_TRANSPORT_INLINE);
  if (!stream->Write(opened))
    return absl::CancelledError("the GPU worker left while the exchange was opening");

  worker::v1::ExchangeRequest request;
  worker::v1::ExchangeResponse response;
  uint32_t sequence = 0;
  while (stream->Read(&request)) {
    const std::optional<Descriptor> descriptor = TakeDescriptor(request.frame());
    if (!descriptor.has_value()) {
      return absl::InvalidArgumentError("exchange request: expected a frame that starts with a descriptor");
    }
    if (descriptor->flags == kFlagStepOpens || descriptor->flags == kFlagStepCloses) {
      session->SetStep(descriptor->flags == kFlagStepOpens ? StepState::kOpen : StepState::kClosed);
      continue;
    }
    ISOTHERM_RETURN_IF_ERROR(
        Answer(*descriptor, ++sequence, request.frame().payload(), session, response.mutable_frame()));
    if (!stream->Write(response)) break;
  }
  return absl::OkStatus();
}

}  // namespace isotherm::exchange
