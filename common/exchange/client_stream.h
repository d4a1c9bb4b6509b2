#ifndef ISOTHERM_COMMON_EXCHANGE_CLIENT_STREAM_H_
#define ISOTHERM_COMMON_EXCHANGE_CLIENT_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "isotherm/worker/v1/neuron.grpc.pb.h"

namespace isotherm::exchange {

// The client's end of one Exchange stream: every wait bounded, the end of the stream noticed at once. A
// thread of its own takes the completions, so one driver thread may call Write and Read while another learns
// of a break.
class ClientStream {
 public:
  struct Incoming {
    worker::v1::ExchangeResponse message;
    int64_t arrived_at_ns = 0;  // MonotonicNanoseconds
  };

  explicit ClientStream(worker::v1::NeuronService::Stub* stub);
  // Lets the server finish for a moment, then cancels.
  ~ClientStream();
  ClientStream(const ClientStream&) = delete;
  ClientStream& operator=(const ClientStream&) = delete;

  // Hands the message to gRPC once the message before it is on its way. The message may be reused on return.
  absl::Status Write(const worker::v1::ExchangeRequest& request, absl::Duration timeout);

  // The next message; what Write and Read return when the stream has ended is why it ended, never OK. After
  // DeadlineExceeded the stream still works.
  absl::StatusOr<Incoming> Read(absl::Duration timeout, absl::Duration spin = absl::ZeroDuration());

  // Half-closes, gives the server `grace` to end the call, then cancels it. Returns why the stream ended.
  absl::Status Close(absl::Duration grace);
  void Cancel() { context_.TryCancel(); }

  bool ended() const;
  // Runs on the stream's thread when the stream ends, at once if it has.
  void OnEnd(std::function<void()> callback);

 private:
  enum Event : intptr_t { kStarted = 1, kRead, kWritten, kHalfClosed, kFinished };
  static void* Tag(Event event) { return reinterpret_cast<void*>(event); }

  void Run();
  void Handle(Event event, bool ok);
  void Deliver();
  absl::Status EndStatus() const;  // holds mutex_

  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<worker::v1::ExchangeRequest, worker::v1::ExchangeResponse>>
      stream_;

  // The stream's thread alone.
  worker::v1::ExchangeResponse reading_;
  grpc::Status finish_status_;

  // All below guarded by mutex_. std::mutex, because the distribution's Abseil hides its own from the thread
  // sanitizer.
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int pending_ = 0;  // operations gRPC still owes a completion for
  bool started_ = false;
  bool writing_ = false;
  bool finishing_ = false;  // no new operation may start
  bool ended_ = false;
  bool overrun_ = false;  // the server sent more answers than exchanges can be in flight
  std::deque<Incoming> inbox_;
  grpc::Status status_;
  std::function<void()> on_end_;
  // Mirrors "inbox_ has something or ended_" for spinning without the lock.
  std::atomic<bool> readable_{false};

  std::thread thread_;  // last: runs once everything above exists
};

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_CLIENT_STREAM_H_
