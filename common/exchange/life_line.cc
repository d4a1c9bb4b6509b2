#include "common/exchange/life_line.h"

#include "absl/strings/str_cat.h"

namespace isotherm::exchange {
namespace {

// A live client answers a failed region within one of its exchanges.
constexpr absl::Duration kFarewell = absl::Seconds(1);

}  // namespace

LifeLine::LifeLine(grpc::ServerContext* context, ServerStream* stream, Region* region,
                   ServedSequences* served)
    : context_(context), stream_(stream), region_(region), served_(served), thread_(&LifeLine::Watch, this) {}

LifeLine::~LifeLine() {
  region_->Fail();
  {
    std::unique_lock<std::mutex> lock(mutex_);
    const bool ended =
        changed_.wait_for(lock, absl::ToChronoMilliseconds(kFarewell), [this] { return ended_; });
    if (!ended) context_->TryCancel();
  }
  thread_.join();
}

void LifeLine::Watch() {
  worker::v1::ExchangeRequest message;
  if (stream_->Read(&message) && message.has_attached()) {
    region_->RemoveName();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      attached_ = true;
    }
    changed_.notify_all();
    // Blocks for the life of the channel: nothing but notes may follow.
    while (stream_->Read(&message) && message.has_note()) served_->Take(message.note());
  }
  region_->Fail();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
  }
  changed_.notify_all();
}

absl::Status LifeLine::AwaitAttached(absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_for(lock, absl::ToChronoMilliseconds(timeout), [this] { return attached_ || ended_; });
  if (attached_) return absl::OkStatus();
  if (ended_) return absl::CancelledError("the GPU worker left before it had mapped the exchange region");
  return absl::DeadlineExceededError(
      absl::StrCat("the GPU worker did not map the exchange region in ", absl::FormatDuration(timeout)));
}

}  // namespace isotherm::exchange
