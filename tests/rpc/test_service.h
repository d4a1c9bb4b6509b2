#ifndef ISOTHERM_TESTS_RPC_TEST_SERVICE_H_
#define ISOTHERM_TESTS_RPC_TEST_SERVICE_H_

#include <stdexcept>
#include <string>

#include "absl/time/clock.h"
#include "common/rpc/server.h"
#include "isotherm/worker/v1/predictor.grpc.pb.h"

namespace isotherm::rpc {

inline constexpr char kPredictorService[] = "isotherm.worker.v1.PredictorService";

// A service with handlers as they should be, that does what the request's model_digest says.
class TestService final : public worker::v1::PredictorService::Service {
 public:
  grpc::Status GetPredictor(grpc::ServerContext* context, const worker::v1::GetPredictorRequest* request,
                            worker::v1::GetPredictorResponse* response) override {
    return Handle("PredictorService/GetPredictor", context, [&]() -> absl::Status {
      const std::string& wish = request->model_digest();
      if (wish == "throw") throw std::runtime_error("a bug");
      if (wish == "throw-int") throw 7;
      if (wish == "busy") return ResourceExhaustedError("queue full", absl::Milliseconds(1500));
      if (wish == "field") return InvalidField("model_digest", "is not known here");
      if (wish == "until-cancelled") {
        while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
        absl::SleepFor(absl::Milliseconds(200));  // handlers are seldom quick to notice
        return absl::CancelledError("the client gave up");
      }
      response->set_name(wish);
      return absl::OkStatus();
    });
  }

  // Answers every request with its input as masks.
  grpc::Status Predict(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<worker::v1::PredictResponse, worker::v1::PredictRequest>* stream) override {
    return Handle("PredictorService/Predict", context, [&]() -> absl::Status {
      worker::v1::PredictRequest request;
      while (stream->Read(&request)) {
        worker::v1::PredictResponse response;
        response.set_masks(request.input());
        stream->Write(response);
      }
      return context->IsCancelled() ? absl::CancelledError("stream broken") : absl::OkStatus();
    });
  }
};

// Calls GetPredictor with the wish.
inline absl::Status Call(const std::string& address, const std::string& wish,
                         absl::Duration timeout = absl::Seconds(20)) {
  const auto stub = worker::v1::PredictorService::NewStub(MakeChannel(address));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  worker::v1::GetPredictorRequest request;
  request.set_model_digest(wish);
  worker::v1::GetPredictorResponse response;
  return FromGrpc(stub->GetPredictor(&context, request, &response));
}

// One server of a TestService on a loopback port of its own.
struct TestServer {
  explicit TestServer(ServerOptions options = {}) {
    if (options.listen.empty()) options.listen = {"127.0.0.1:0"};
    server = Server::Start(options, {&service}).value();
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(server->ports().front()); }

  TestService service;
  std::unique_ptr<Server> server;
};

}  // namespace isotherm::rpc

#endif  // ISOTHERM_TESTS_RPC_TEST_SERVICE_H_
