#include "gpu_worker/predict/remote_predictor.h"

#include <spdlog/spdlog.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/neuron/mask.h"
#include "common/observe/metrics.h"
#include "common/rpc/status.h"

namespace isotherm::gpu_worker {
namespace {

namespace v1 = worker::v1;

// One Predict stream. gRPC gives a stream one deadline for its whole life: the stream is renewed well before
// it, so that the deadline bounds each answer.
class Session {
 public:
  Session(v1::PredictorService::Stub* stub, absl::Duration timeout) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    stream_ = stub->Predict(&context_);
  }
  ~Session() {
    context_.TryCancel();
    stream_->Finish();
  }

  absl::StatusOr<v1::PredictResponse> Call(const v1::PredictRequest& request) {
    v1::PredictResponse response;
    if (!stream_->Write(request) || !stream_->Read(&response)) {
      context_.TryCancel();
      return absl::UnavailableError("the predictor closed its stream or did not answer in time");
    }
    return response;
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::PredictRequest, v1::PredictResponse>> stream_;
};

class RemotePredictor final : public Predictor {
 public:
  RemotePredictor(std::unique_ptr<v1::PredictorService::Stub> stub, RemotePredictorOptions options,
                  v1::GetPredictorResponse description)
      : stub_(std::move(stub)),
        options_(std::move(options)),
        description_(std::move(description)),
        latency_(observe::Registry::Global().GetHistogram(
            "isotherm_remote_predictor_seconds", "Round trip of one prediction to the remote predictor.",
            observe::ExchangeBuckets())),
        failures_(observe::Registry::Global().GetCounter(
            "isotherm_remote_predictor_failures_total",
            "Predictions that failed and were replaced by computing every neuron.")) {}

  std::string name() const override {
    return lost_ ? "all (predictor lost)" : absl::StrCat("remote:", description_.name());
  }
  bool exact() const override { return lost_ || description_.exact(); }
  bool looks_ahead() const override { return false; }

  void Enqueue(Device& device, int64_t layer, const float* residual, const float* ffn_input, int64_t rows,
               const Prediction& out) override {
    const float* input = description_.reads_residual() ? residual : ffn_input;
    device.MaskFromHost(input, rows, out.masks, [&](const float* host_input, uint64_t* masks) {
      if (absl::Status status = Predict(layer, host_input, rows, masks); !status.ok()) {
        Lose(status);
        for (int64_t row = 0; row < rows; ++row) {
          neuron::SetAll(masks + row * neuron::MaskWords(options_.ffn), options_.ffn);
        }
      }
      return absl::OkStatus();
    });
  }

 private:
  absl::Status Predict(int64_t layer, const float* input, int64_t rows, uint64_t* masks) {
    if (lost_ && absl::Now() < retry_at_) return absl::UnavailableError("waiting before the next attempt");
    // The session is renewed before it is old enough for its deadline to end it between two layers of a step.
    if (session_ == nullptr || absl::Now() > session_started_ + options_.timeout / 2) {
      session_ = std::make_unique<Session>(stub_.get(), options_.timeout);
      session_started_ = absl::Now();
    }
    v1::PredictRequest request;
    request.set_layer(static_cast<uint32_t>(layer));
    request.set_rows(static_cast<uint32_t>(rows));
    request.set_input(input, rows * options_.hidden * sizeof(float));
    const absl::Time start = absl::Now();
    ISOTHERM_ASSIGN_OR_RETURN(const v1::PredictResponse response, session_->Call(request));
    latency_.Observe(absl::ToDoubleSeconds(absl::Now() - start));
    ISOTHERM_RETURN_IF_ERROR(CopyMasks(response.masks(), rows, masks));
    if (lost_) spdlog::info("remote predictor '{}' is back", description_.name());
    lost_ = false;
    return absl::OkStatus();
  }

  absl::Status CopyMasks(const std::string& bytes, int64_t rows, uint64_t* masks) const {
    const int64_t words = neuron::MaskWords(options_.ffn);
    if (static_cast<int64_t>(bytes.size()) != rows * words * 8) {
      return absl::InvalidArgumentError(absl::StrCat("the predictor sent ", bytes.size(), " mask bytes for ",
                                                     rows, " rows; expected ", rows * words * 8));
    }
    std::memcpy(masks, bytes.data(), bytes.size());
    const int64_t tail = options_.ffn % 64;
    for (int64_t row = 0; tail != 0 && row < rows; ++row) {
      if (masks[row * words + words - 1] >> tail != 0) {
        return absl::InvalidArgumentError("the predictor set mask bits past the last neuron");
      }
    }
    return absl::OkStatus();
  }

  void Lose(const absl::Status& status) {
    failures_.Add();
    if (!lost_) {
      spdlog::warn("remote predictor '{}' lost, computing every neuron until it is back: {}",
                   description_.name(), std::string(status.message()));
    }
    if (!lost_ || absl::Now() >= retry_at_) retry_at_ = absl::Now() + options_.retry_interval;
    lost_ = true;
    session_.reset();
  }

  std::unique_ptr<v1::PredictorService::Stub> stub_;
  const RemotePredictorOptions options_;
  const v1::GetPredictorResponse description_;
  observe::Histogram latency_;
  observe::Counter failures_;
  std::unique_ptr<Session> session_;
  absl::Time session_started_;
  absl::Time retry_at_ = absl::InfinitePast();
  bool lost_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Predictor>> MakeRemotePredictor(
    std::unique_ptr<v1::PredictorService::Stub> stub, const RemotePredictorOptions& options) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + options.timeout));
  v1::GetPredictorRequest request;
  request.set_model_digest(options.model_digest);
  v1::GetPredictorResponse description;
  ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(stub->GetPredictor(&context, request, &description)));
  return std::make_unique<RemotePredictor>(std::move(stub), options, std::move(description));
}

}  // namespace isotherm::gpu_worker
