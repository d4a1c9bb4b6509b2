#include "gateway/workers/grpc_worker_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/exchange/logits_region.h"
#include "common/observe/log.h"
#include "common/rpc/server.h"
#include "isotherm/worker/v1/model_runner.grpc.pb.h"

namespace isotherm::gateway {
namespace {

using worker::v1::ModelRunnerService;

// How long to wait for the worker.
struct Patience {
  absl::Time deadline;
  absl::FunctionRef<bool()> keep_waiting;
};

// One Step stream. Its operations run one at a time on a completion queue of their own, which bounds every
// wait without a thread to watch it. Destruction cancels the stream.
class StepStream {
 public:
  static absl::StatusOr<std::unique_ptr<StepStream>> Open(ModelRunnerService::Stub* stub,
                                                          absl::Time deadline) {
    auto stream = std::unique_ptr<StepStream>(new StepStream());
    stream->call_ = stub->PrepareAsyncStep(&stream->context_, &stream->queue_);
    stream->call_->StartCall(stream.get());
    ISOTHERM_RETURN_IF_ERROR(stream->Finished("opening the step stream", {deadline, [] { return true; }}));
    return stream;
  }

  ~StepStream() {
    context_.TryCancel();
    queue_.Shutdown();
    // A cancelled call completes what is pending, so this ends.
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  absl::StatusOr<worker::v1::StepResponse> RoundTrip(const worker::v1::StepRequest& request,
                                                     const Patience& patience) {
    call_->Write(request, this);
    ISOTHERM_RETURN_IF_ERROR(Finished("sending a step", patience));
    call_->Read(&response_, this);
    ISOTHERM_RETURN_IF_ERROR(Finished("waiting for a step", patience));
    return std::move(response_);
  }

 private:
  StepStream() = default;

  absl::Status Finished(const char* what, const Patience& patience) {
    while (true) {
      const absl::Time until = std::min(patience.deadline, absl::Now() + kPatience);
      void* tag;
      bool ok = false;
      switch (queue_.AsyncNext(&tag, &ok, absl::ToChronoTime(until))) {
        case grpc::CompletionQueue::GOT_EVENT:
          return ok ? absl::OkStatus() : Cause(what);
        case grpc::CompletionQueue::SHUTDOWN:
          return absl::InternalError("the step stream's queue is shut down");
        case grpc::CompletionQueue::TIMEOUT:
          break;
      }
      if (until == patience.deadline) {
        return absl::UnavailableError(absl::StrCat("the GPU worker did not answer in time while ", what));
      }
      if (!patience.keep_waiting()) {
        return absl::UnavailableError(absl::StrCat("the gateway gave up while ", what));
      }
    }
  }

  // The stream is over; the peer's status says why.
  absl::Status Cause(const char* what) {
    constexpr absl::Duration kStatusTimeout = absl::Milliseconds(200);
    grpc::Status status;
    void* tag;
    bool ok;
    call_->Finish(&status, this);
    if (queue_.AsyncNext(&tag, &ok, absl::ToChronoTime(absl::Now() + kStatusTimeout)) !=
        grpc::CompletionQueue::GOT_EVENT) {
      // `status` must outlive the operation.
      context_.TryCancel();
      queue_.Next(&tag, &ok);
    }
    return absl::UnavailableError(
        absl::StrCat("the GPU worker is lost while ", what, ": ",
                     status.ok() ? "it closed the stream" : status.error_message()));
  }

  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<worker::v1::StepRequest, worker::v1::StepResponse>> call_;
  worker::v1::StepResponse response_;  // a pending read writes into it
};

absl::Status CheckAnswer(const worker::v1::StepRequest& request, const worker::v1::StepResponse& response) {
  if (response.step_id() != request.step_id()) {
    return absl::UnavailableError(
        absl::StrCat("the GPU worker answered step ", response.step_id(), ", not ", request.step_id()));
  }
  if (response.has_failure()) return absl::OkStatus();
  const worker::v1::StepSuccess& success = response.success();
  if (success.outputs_size() != request.slices_size()) {
    return absl::UnavailableError(absl::StrCat("the GPU worker answered ", success.outputs_size(), " of ",
                                               request.slices_size(), " slices"));
  }
  for (int i = 0; i < request.slices_size(); ++i) {
    if (success.outputs(i).sequence_id() != request.slices(i).sequence_id()) {
      return absl::UnavailableError(absl::StrCat("the GPU worker's output ", i, " is for another sequence"));
    }
  }
  return absl::OkStatus();
}

absl::Status FailureStatus(const worker::v1::StepFailure& failure) {
  if (failure.retryable()) return absl::UnavailableError(failure.message());
  const auto code = static_cast<absl::StatusCode>(failure.code());
  const bool misleading = code == absl::StatusCode::kOk || code == absl::StatusCode::kUnavailable;
  return absl::Status(misleading ? absl::StatusCode::kInternal : code, failure.message());
}

class GrpcWorkerClient final : public WorkerClient {
 public:
  GrpcWorkerClient(std::string address, rpc::ClientCredentials credentials, std::string shm_directory)
      : address_(std::move(address)),
        credentials_(std::move(credentials)),
        shm_directory_(std::move(shm_directory)) {}

  absl::StatusOr<worker::v1::GetRunnerResponse> Connect(absl::Duration timeout) override {
    // A new channel: one that failed holds back its next attempt for longer and longer.
    Disconnect();
    stub_ = ModelRunnerService::NewStub(rpc::MakeChannel(address_, credentials_));
    // The stream before the question: should the process be replaced in between, the stream is dead.
    ISOTHERM_ASSIGN_OR_RETURN(stream_, StepStream::Open(stub_.get(), absl::Now() + timeout));
    absl::StatusOr<worker::v1::GetRunnerResponse> runner = GetRunner(timeout);
    if (!runner.ok()) Disconnect();
    if (runner.ok()) runner_ = *runner;
    return runner;
  }

  absl::StatusOr<worker::v1::GetRunnerResponse> GetRunner(absl::Duration timeout) override {
    if (stub_ == nullptr) return absl::UnavailableError("not connected to the GPU worker yet");
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    worker::v1::GetRunnerResponse response;
    const grpc::Status status = stub_->GetRunner(&context, {}, &response);
    if (!status.ok()) {
      return absl::UnavailableError(
          absl::StrCat("the GPU worker at ", address_, " does not answer: ", status.error_message()));
    }
    return response;
  }

  absl::StatusOr<worker::v1::StepSuccess> Step(const worker::v1::StepRequest& request, absl::Duration timeout,
                                               absl::FunctionRef<bool()> keep_waiting) override {
    if (stream_ == nullptr) return absl::UnavailableError("not connected to the GPU worker");
    const Patience patience{absl::Now() + timeout, keep_waiting};
    auto response = offered_ ? stream_->RoundTrip(request, patience) : FirstRoundTrip(request, patience);
    const absl::Status fits = response.ok() ? Accept(request, *response) : response.status();
    if (!fits.ok()) {
      Disconnect();
      return fits;
    }
    if (response->has_failure()) return FailureStatus(response->failure());
    return std::move(*response->mutable_success());
  }

 private:
  void Disconnect() {
    stream_.reset();
    logits_.reset();
    offered_ = false;
  }

  // Offers memory for logits, whose name is of no use once the runner has answered.
  absl::StatusOr<worker::v1::StepResponse> FirstRoundTrip(worker::v1::StepRequest request,
                                                          const Patience& patience) {
    offered_ = true;
    if (shm_directory_.empty()) return stream_->RoundTrip(request, patience);
    auto region = exchange::LogitsRegion::Create(shm_directory_, runner_.max_decode_rows(),
                                                 int64_t{runner_.vocabulary_size()} * int64_t{sizeof(float)});
    if (!region.ok()) {
      spdlog::info("logits come inside messages: {}", std::string(region.status().message()));
      return stream_->RoundTrip(request, patience);
    }
    logits_ = *std::move(region);
    *request.mutable_logits_region() = logits_->offer();
    auto response = stream_->RoundTrip(request, patience);
    logits_->RemoveName();
    return response;
  }

  absl::Status Accept(const worker::v1::StepRequest& request, worker::v1::StepResponse& response) const {
    ISOTHERM_RETURN_IF_ERROR(CheckAnswer(request, response));
    if (response.has_failure() || logits_ == nullptr) return absl::OkStatus();
    const absl::Status taken = logits_->Take(request, *response.mutable_success());
    return taken.ok() ? taken : absl::UnavailableError(absl::StrCat("the GPU worker put ", taken.message()));
  }

  const std::string address_;
  const rpc::ClientCredentials credentials_;
  const std::string shm_directory_;
  std::unique_ptr<ModelRunnerService::Stub> stub_;
  std::unique_ptr<StepStream> stream_;
  worker::v1::GetRunnerResponse runner_;            // at the other end of the stream
  bool offered_ = false;                            // the stream's first request is under way or answered
  std::unique_ptr<exchange::LogitsRegion> logits_;  // of the stream; null: they come inside messages
};

}  // namespace

std::unique_ptr<WorkerClient> NewGrpcWorkerClient(const std::string& address,
                                                  const rpc::ClientCredentials& credentials,
                                                  const std::string& shm_directory) {
  return std::make_unique<GrpcWorkerClient>(address, credentials, shm_directory);
}

absl::StatusOr<worker::v1::GetRunnerFiringCountsResponse> FetchFiringCounts(
    const std::string& address, const rpc::ClientCredentials& credentials, absl::Duration timeout) {
  const auto stub = ModelRunnerService::NewStub(rpc::MakeChannel(address, credentials));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  worker::v1::GetRunnerFiringCountsResponse response;
  ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(stub->GetFiringCounts(&context, {}, &response)));
  return response;
}

}  // namespace isotherm::gateway
