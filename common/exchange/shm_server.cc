#include "common/exchange/shm_server.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/exchange/doorbell.h"
#include "common/exchange/life_line.h"
#include "common/neuron/mask.h"

namespace isotherm::exchange {
namespace {

// A GPU rings without waking anybody: what one late look may cost while a step is open.
constexpr int64_t kOpenStepSliceNs = 1'000'000;
// Between the name of the region and its mapping lies one round trip.
constexpr absl::Duration kAttachTimeout = absl::Seconds(10);

// What a client wrote: anything it should not have counts as open.
StepState LoadStep(const RegionHeader* header) {
  const auto state = static_cast<StepState>(LoadWord(&header->step_open));
  return state == StepState::kClosed || state == StepState::kOpenOnDevice ? state : StepState::kOpen;
}

}  // namespace

ShmServer::ShmServer(Region* region, Session* session, const ServerOptions& options)
    : region_(region),
      session_(session),
      spin_ns_(int64_t{options.spin_us} * 1000),
      device_spin_ns_(std::max(spin_ns_, int64_t{options.device_spin_us} * 1000)),
      slice_ns_(
          absl::ToInt64Nanoseconds(std::clamp(options.wait_slice, absl::Milliseconds(1), absl::Seconds(1)))),
      masks_(static_cast<size_t>(region->geometry().max_rows * neuron::MaskWords(region->geometry().ffn))) {}

absl::Status ShmServer::Serve() {
  while (true) {
    ISOTHERM_RETURN_IF_ERROR(AwaitRequest());
    if (region_->failed()) return absl::OkStatus();
    ISOTHERM_RETURN_IF_ERROR(Answer());
  }
}

absl::Status ShmServer::AwaitRequest() {
  RegionHeader* header = region_->header();
  const auto full_spin_ns = [&] {
    return session_->step() == StepState::kOpenOnDevice ? device_spin_ns_ : spin_ns_;
  };
  int64_t spin_ns = full_spin_ns();
  while (true) {
    const StepState step = session_->step();
    const auto ready = [&] {
      return LoadWord(&header->request_doorbell) != answered_ || LoadStep(header) != step || Expects() ||
             region_->failed();
    };
    const int64_t slice_ns = step == StepState::kClosed ? slice_ns_ : std::min(slice_ns_, kOpenStepSliceNs);
    SpinThenPark(&header->server_parked, spin_ns, slice_ns, ready);
    if (region_->failed()) return absl::OkStatus();
    session_->SetStep(LoadStep(header));
    const uint32_t rung = LoadWord(&header->request_doorbell);
    if (rung - answered_ > kSlots) {
      return absl::InvalidArgumentError(
          absl::StrCat("exchange request: the doorbell jumped from ", answered_, " to ", rung));
    }
    if (rung != answered_) return absl::OkStatus();
    const bool expects = Expects();
    if (expects) PassOnExpectation();
    // A step that has just opened or closed and a request announced are worth another spin; a slice that ran
    // out is not.
    spin_ns = expects || session_->step() != step ? full_spin_ns() : 0;
  }
}

bool ShmServer::Expects() const {
  const uint32_t expected = LoadWord(&region_->header()->expectation_doorbell);
  return expected == answered_ + 1 && expected != expected_;
}

// Whatever it says can only waste time: a layer that does not exist is left alone, bits that no neuron has
// are dropped.
void ShmServer::PassOnExpectation() {
  expected_ = answered_ + 1;
  const Geometry& geometry = region_->geometry();
  const Region::Slot slot = region_->slot(expected_);
  const int64_t layer = std::atomic_ref<uint32_t>(slot.expected->layer).load(std::memory_order_relaxed);
  if (layer >= geometry.layers) return;
  const int64_t words = neuron::MaskWords(geometry.ffn);
  std::memcpy(masks_.data(), slot.expected_mask, static_cast<size_t>(words) * sizeof(uint64_t));
  if (geometry.ffn % 64 != 0) masks_[words - 1] &= (uint64_t{1} << (geometry.ffn % 64)) - 1;
  session_->OnExpectation(layer, masks_.data(), [this] {
    return LoadWord(&region_->header()->request_doorbell) != answered_ || region_->failed();
  });
}

absl::Status ShmServer::Answer() {
  const uint32_t sequence = answered_ + 1;
  const Region::Slot slot = region_->slot(sequence);
  Descriptor descriptor;
  std::memcpy(&descriptor, slot.request, sizeof(descriptor));
  ServerRequest request{.x = slot.x, .masks = masks_.data()};
  ISOTHERM_ASSIGN_OR_RETURN(request.header, session_->Check(descriptor, region_->generation(), sequence));
  const int64_t words = request.header.rows * neuron::MaskWords(region_->geometry().ffn);
  std::memcpy(masks_.data(), slot.masks, static_cast<size_t>(words) * sizeof(uint64_t));
  if (request.header.has_gate_values) request.gate_values = slot.gate_values;
  ISOTHERM_ASSIGN_OR_RETURN(const Descriptor answer, session_->Execute(descriptor, request, slot.y));
  std::memcpy(slot.answer, &answer, sizeof(answer));
  answered_ = sequence;
  StoreWord(&region_->header()->answer_doorbell, sequence);
  WakeParked(&region_->header()->client_parked);
  return absl::OkStatus();
}

absl::Status ServeSharedMemory(grpc::ServerContext* context, ServerStream* stream,
                               std::unique_ptr<Region> region, Session* session,
                               const ServerOptions& options) {
  worker::v1::ExchangeResponse response;
  worker::v1::ExchangeOpened* opened = response.mutable_opened();
  opened->set_transport(worker::v1::EXCHANGE_TRANSPORT_SHARED_MEMORY);
  opened->set_region_name(region->name());
  opened->set_region_bytes(static_cast<uint64_t>(region->bytes()));
  if (session->bundles().has_value()) {
    ISOTHERM_ASSIGN_OR_RETURN(*opened->mutable_bundles(), OfferBundles(*session->bundles()));
  }
  if (!stream->Write(response))
    return absl::CancelledError("the GPU worker left while the exchange was opening");
  LifeLine life_line(context, stream, region.get(), &session->served());
  ISOTHERM_RETURN_IF_ERROR(life_line.AwaitAttached(kAttachTimeout));
  return ShmServer(region.get(), session, options).Serve();
}

}  // namespace isotherm::exchange
