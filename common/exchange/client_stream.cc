#include "common/exchange/client_stream.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/exchange/descriptor.h"
#include "common/exchange/doorbell.h"

namespace isotherm::exchange {
namespace {

constexpr absl::Duration kCloseGrace = absl::Seconds(1);

// A wait that the standard library can add to its clock.
std::chrono::nanoseconds Bounded(absl::Duration timeout) {
  return absl::ToChronoNanoseconds(std::min(timeout, absl::Hours(24)));
}

}  // namespace

ClientStream::ClientStream(worker::v1::NeuronService::Stub* stub)
    : stream_(stub->PrepareAsyncExchange(&context_, &queue_)) {
  pending_ = 1;
  // First: where the system refuses a thread, nothing has begun that would need an end.
  thread_ = std::thread(&ClientStream::Run, this);
  std::lock_guard<std::mutex> lock(mutex_);
  stream_->StartCall(Tag(kStarted));
}

ClientStream::~ClientStream() {
  Close(kCloseGrace).IgnoreError();
  thread_.join();
}

void ClientStream::Run() {
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) Handle(static_cast<Event>(reinterpret_cast<intptr_t>(tag)), ok);
}

void ClientStream::Handle(Event event, bool ok) {
  std::unique_lock<std::mutex> lock(mutex_);
  --pending_;
  if (event == kRead && ok) Deliver();
  if (event == kStarted) started_ = true;
  if (event == kWritten) writing_ = false;
  const bool reads_on = ok && !overrun_ && (event == kStarted || event == kRead);
  if (reads_on) {
    ++pending_;
    stream_->Read(&reading_, Tag(kRead));
  } else if (event == kStarted || event == kRead) {
    finishing_ = true;
    ++pending_;
    stream_->Finish(&finish_status_, Tag(kFinished));
  }
  std::function<void()> on_end;
  if (event == kFinished) {
    status_ = finish_status_;
    ended_ = true;
    readable_.store(true, std::memory_order_release);
    on_end = std::move(on_end_);
  }
  if (ended_ && pending_ == 0) queue_.Shutdown();
  lock.unlock();
  changed_.notify_all();
  if (on_end) on_end();
}

void ClientStream::Deliver() {
  if (inbox_.size() == kSlots) {
    // No more exchanges are in flight at a time, so that this answers nothing.
    overrun_ = true;
    context_.TryCancel();
    return;
  }
  inbox_.push_back({std::move(reading_), MonotonicNanoseconds()});
  readable_.store(true, std::memory_order_release);
}

absl::Status ClientStream::EndStatus() const {
  if (overrun_) return absl::DataLossError("the CPU worker sent an answer without a request");
  const std::string message = absl::StrCat("CPU worker: ", status_.error_message());
  switch (status_.error_code()) {
    case grpc::StatusCode::OK:
      return absl::UnavailableError("the CPU worker closed the exchange stream");
    case grpc::StatusCode::CANCELLED:
    case grpc::StatusCode::UNKNOWN:
      return absl::UnavailableError(message);
    default:
      return absl::Status(static_cast<absl::StatusCode>(status_.error_code()), message);
  }
}

absl::Status ClientStream::Write(const worker::v1::ExchangeRequest& request, absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  const bool ready = changed_.wait_for(lock, Bounded(timeout),
                                       [this] { return ended_ || (started_ && !writing_ && !finishing_); });
  if (ended_) return EndStatus();
  if (!ready)
    return absl::DeadlineExceededError(
        absl::StrCat("no room to write to the CPU worker in ", absl::FormatDuration(timeout)));
  writing_ = true;
  ++pending_;
  stream_->Write(request, Tag(kWritten));
  return absl::OkStatus();
}

absl::StatusOr<ClientStream::Incoming> ClientStream::Read(absl::Duration timeout, absl::Duration spin) {
  if (spin > absl::ZeroDuration()) {
    const int64_t end = MonotonicNanoseconds() + absl::ToInt64Nanoseconds(spin);
    while (!readable_.load(std::memory_order_acquire) && MonotonicNanoseconds() < end) base::CpuRelax();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  const bool ready = changed_.wait_for(lock, Bounded(timeout), [this] { return ended_ || !inbox_.empty(); });
  if (!ready)
    return absl::DeadlineExceededError(
        absl::StrCat("no message from the CPU worker in ", absl::FormatDuration(timeout)));
  if (overrun_ || inbox_.empty()) return EndStatus();
  Incoming incoming = std::move(inbox_.front());
  inbox_.pop_front();
  readable_.store(ended_ || !inbox_.empty(), std::memory_order_release);
  return incoming;
}

absl::Status ClientStream::Close(absl::Duration grace) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto period = Bounded(grace);
  const bool can_half_close =
      changed_.wait_for(lock, period, [this] { return ended_ || finishing_ || (started_ && !writing_); });
  if (can_half_close && !ended_ && !finishing_) {
    writing_ = true;  // nothing may be written after the half-close
    ++pending_;
    stream_->WritesDone(Tag(kHalfClosed));
    changed_.wait_for(lock, period, [this] { return ended_; });
  }
  // Harmless when the call has ended; otherwise ends it.
  context_.TryCancel();
  changed_.wait(lock, [this] { return ended_; });
  return EndStatus();
}

bool ClientStream::ended() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return ended_;
}

void ClientStream::OnEnd(std::function<void()> callback) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!ended_) {
      on_end_ = std::move(callback);
      return;
    }
  }
  callback();
}

}  // namespace isotherm::exchange
