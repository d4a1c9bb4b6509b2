#include "common/exchange/shm_client.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/exchange/doorbell.h"
#include "common/neuron/mask.h"

namespace isotherm::exchange {
namespace {

// The server's ring and the end of the stream both wake the client; the slice only bounds what a bug could
// cost.
constexpr int64_t kParkSliceNs = 50'000'000;
// How long a worker that failed the region may take to say why.
constexpr absl::Duration kReasonGrace = absl::Seconds(1);

}  // namespace

ShmClient::ShmClient(const ClientOptions& options, std::unique_ptr<Region> region,
                     std::unique_ptr<SharedBundles> bundles, std::unique_ptr<ClientStream> stream)
    : ClientChannel(options, region->generation(), std::move(stream)),
      region_(std::move(region)),
      bundles_(std::move(bundles)) {
  stream_->OnEnd([region = region_.get()] { region->Fail(); });
}

void ShmClient::BeginStep(uint64_t) {
  const StepState state = device_rings_ ? StepState::kOpenOnDevice : StepState::kOpen;
  StoreWord(&region_->header()->step_open, static_cast<uint32_t>(state));
  WakeParked(&region_->header()->server_parked);
}

// Wakes nobody: while a step is open the server looks again every millisecond.
void ShmClient::EndStep() { StoreWord(&region_->header()->step_open, 0); }

// The slot of the next request is free: the answer to the one before was taken when the last was sent.
void ShmClient::Expect(int64_t layer, const uint64_t* mask) {
  const uint32_t expected = sequence() + 1;
  const Region::Slot slot = region_->slot(expected);
  *slot.expected = {.layer = static_cast<uint32_t>(layer)};
  std::copy_n(mask, neuron::MaskWords(geometry_.ffn), slot.expected_mask);
  StoreWord(&region_->header()->expectation_doorbell, expected);
}

RequestBuffers ShmClient::Prepare(const Descriptor& request) {
  const Region::Slot slot = region_->slot(request.sequence);
  return {.x = slot.x, .masks = slot.masks, .gate_values = slot.gate_values};
}

absl::Status ShmClient::Publish(const Descriptor& request) {
  std::memcpy(region_->slot(request.sequence).request, &request, sizeof(request));
  StoreWord(&region_->header()->request_doorbell, request.sequence);
  WakeParked(&region_->header()->server_parked);
  return absl::OkStatus();
}

absl::StatusOr<ClientChannel::Arrival> ShmClient::Receive(const Descriptor& request) {
  RegionHeader* header = region_->header();
  const uint32_t previous = request.sequence - 1;
  const auto ready = [&] { return LoadWord(&header->answer_doorbell) != previous || region_->failed(); };
  const int64_t deadline_ns =
      MonotonicNanoseconds() + absl::ToInt64Nanoseconds(std::min(timeout_, absl::Hours(24)));
  int64_t spin_ns = absl::ToInt64Nanoseconds(spin_);
  int64_t slice_ns = std::min(kParkSliceNs, deadline_ns - MonotonicNanoseconds());
  while (!SpinThenPark(&header->client_parked, spin_ns, slice_ns, ready)) {
    spin_ns = 0;
    slice_ns = std::min(kParkSliceNs, deadline_ns - MonotonicNanoseconds());
    if (slice_ns <= 0) {
      return absl::DeadlineExceededError(
          absl::StrCat("no answer from the CPU worker in ", absl::FormatDuration(timeout_)));
    }
  }
  if (region_->failed()) return stream_->Close(kReasonGrace);
  const uint32_t answered = LoadWord(&header->answer_doorbell);
  if (answered - request.sequence > sequence() - request.sequence) {
    return absl::DataLossError(
        absl::StrCat("the CPU worker answered exchange ", answered, " instead of ", request.sequence));
  }
  const Region::Slot slot = region_->slot(request.sequence);
  Arrival arrival{.y = slot.y};
  std::memcpy(&arrival.descriptor, slot.answer, sizeof(arrival.descriptor));
  arrival.at_ns = static_cast<int64_t>(arrival.descriptor.answered_at_ns);
  return arrival;
}

void ShmClient::Kill() {
  region_->Fail();
  stream_->Cancel();
}

}  // namespace isotherm::exchange
