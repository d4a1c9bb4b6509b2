#include "common/exchange/inline_server.h"

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/exchange/frame.h"

namespace isotherm::exchange {
namespace {

// Answers requests; keeps its buffers from one to the next.
class Answerer {
 public:
  explicit Answerer(Session* session) : session_(session), geometry_(session->geometry()) {
    if (!geometry_.bf16) return;
    x_.resize(static_cast<size_t>(geometry_.max_rows * geometry_.hidden));
    y_.resize(x_.size());
  }

  absl::Status Answer(const Descriptor& descriptor, uint32_t sequence, const std::string& payload,
                      worker::v1::ExchangeFrame* frame) {
    ServerRequest request;
    ISOTHERM_ASSIGN_OR_RETURN(request.header, session_->Check(descriptor, /*generation=*/0, sequence));
    const int64_t rows = request.header.rows;
    const FrameLayout layout = MakeFrameLayout(geometry_, rows, descriptor.gate_value_count);
    if (payload.size() != static_cast<size_t>(layout.bytes)) {
      return absl::InvalidArgumentError(absl::StrCat("exchange request: ", payload.size(),
                                                     " bytes of payload for ", rows, " rows, expected ",
                                                     layout.bytes));
    }
    // Strings of more than a few bytes come from the allocator, whose memory is aligned for every scalar.
    request.x = reinterpret_cast<const float*>(payload.data());
    request.masks = reinterpret_cast<const uint64_t*>(payload.data() + layout.masks);
    if (request.header.has_gate_values) {
      request.gate_values = reinterpret_cast<const float*>(payload.data() + layout.gate_values);
    }
    std::string* out = frame->mutable_payload();
    out->resize(static_cast<size_t>(AnswerBytes(geometry_, rows)));
    auto* y = reinterpret_cast<float*>(out->data());
    if (geometry_.bf16) {
      DecodeActivations(payload.data(), rows * geometry_.hidden, x_.data());
      request.x = x_.data();
      y = y_.data();
    }
    ISOTHERM_ASSIGN_OR_RETURN(const Descriptor answer, session_->Execute(descriptor, request, y));
    if (geometry_.bf16) EncodeActivations(y, rows * geometry_.hidden, out->data());
    PutDescriptor(answer, frame);
    return absl::OkStatus();
  }

 private:
  Session* const session_;
  const Geometry geometry_;
  // F32 [max_rows, hidden] on this side of BF16 frames; otherwise empty.
  std::vector<float> x_, y_;
};

}  // namespace

absl::Status ServeInline(ServerStream* stream, Session* session) {
  worker::v1::ExchangeResponse opened;
  opened.mutable_opened()->set_transport(worker::v1::EXCHANGE_TRANSPORT_INLINE);
  if (!stream->Write(opened))
    return absl::CancelledError("the GPU worker left while the exchange was opening");

  worker::v1::ExchangeRequest request;
  worker::v1::ExchangeResponse response;
  Answerer answerer(session);
  uint32_t sequence = 0;
  while (stream->Read(&request)) {
    if (request.has_note()) {
      session->served().Take(request.note());
      continue;
    }
    const std::optional<Descriptor> descriptor = TakeDescriptor(request.frame());
    if (!descriptor.has_value()) {
      return absl::InvalidArgumentError("exchange request: expected a frame that starts with a descriptor");
    }
    if (descriptor->flags == kFlagStepOpens || descriptor->flags == kFlagStepCloses) {
      session->SetStep(descriptor->flags == kFlagStepOpens ? StepState::kOpen : StepState::kClosed);
      continue;
    }
    ISOTHERM_RETURN_IF_ERROR(
        answerer.Answer(*descriptor, ++sequence, request.frame().payload(), response.mutable_frame()));
    if (!stream->Write(response)) break;
  }
  return absl::OkStatus();
}

}  // namespace isotherm::exchange
