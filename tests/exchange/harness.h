#ifndef ISOTHERM_TESTS_EXCHANGE_HARNESS_H_
#define ISOTHERM_TESTS_EXCHANGE_HARNESS_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/exchange/channel.h"

namespace isotherm::exchange {

// A directory of its own, removed with what is in it.
class TempDirectory {
 public:
  explicit TempDirectory(const std::string& parent);
  ~TempDirectory();
  const std::string& path() const { return path_; }
  std::vector<std::string> Files() const;

 private:
  std::string path_;
};

// Answers with bits of x mixed with a hash over everything else in the request, so that one wrong byte on the
// way changes every float of its row. `hook` may take its place.
class FakeExecutor final : public Executor {
 public:
  using Hook = std::function<absl::StatusOr<ServerAnswer>(const ServerRequest&, float* y)>;

  explicit FakeExecutor(const Geometry& geometry) : geometry_(geometry) {}
  absl::StatusOr<ServerAnswer> Execute(const ServerRequest& request, float* y) override;
  void OnStep(StepState state) override {
    (state == StepState::kClosed ? steps_closed : steps_opened)++;
    steps_on_device += state == StepState::kOpenOnDevice;
  }

  void OnExpectation(int64_t layer, const uint64_t* mask, absl::FunctionRef<bool()> stop) override;
  struct Expected {
    int64_t layer;
    std::vector<uint64_t> mask;
    bool request_came;  // while it was waited for, for ten seconds at most
  };
  std::vector<Expected> TakeExpected();
  // Whether so many expectations have come, waiting for five seconds at most.
  bool AwaitExpectations(int count) const;

  static ServerAnswer Answer(const Geometry& geometry, const ServerRequest& request, float* y);

  Hook hook;  // set before the server serves
  std::atomic<int> steps_opened{0}, steps_closed{0}, steps_on_device{0};

 private:
  const Geometry geometry_;
  std::atomic<int> expectations_{0};  // that have come
  std::mutex mutex_;
  std::vector<Expected> expected_;
};

// A gRPC server in this process, on a Unix socket, with NeuronService.Exchange over an executor.
class TestServer {
 public:
  using Handler = std::function<absl::Status(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<worker::v1::ExchangeResponse, worker::v1::ExchangeRequest>*)>;

  // `handler` serves every stream.
  TestServer(const std::string& socket, Handler handler);
  // ServeExchange does.
  TestServer(const std::string& socket, const ServerOptions& options, const ServerPolicy& policy,
             Executor* executor);
  ~TestServer();

  int calls_running() const;
  // How the first call ended that nobody has taken yet; nullopt when none does in time.
  std::optional<absl::Status> TakeResult(absl::Duration timeout);

 private:
  class Service;
  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
};

std::unique_ptr<worker::v1::NeuronService::Stub> MakeStub(const std::string& socket);

// What the tests' two sides agree on.
Geometry SmallGeometry();
ServerPolicy PolicyFor(const Geometry& geometry);
ClientOptions ClientFor(const Geometry& geometry, Transport transport, const std::string& shm_directory);

// One request with contents drawn from `seed`, and a check of its answer.
struct Request {
  RequestHeader header;
  std::vector<float> x;
  std::vector<uint64_t> masks;
  std::vector<float> gate_values;
};
Request RandomRequest(const Geometry& geometry, const RequestHeader& header, uint64_t seed);
// Begin, fill, Send.
absl::Status Dispatch(Channel* channel, const Request& request);
// Await, and every byte of the answer compared: DataLoss where one differs.
absl::Status Collect(Channel* channel, const Geometry& geometry, const Request& request);
// Both.
absl::Status RoundTrip(Channel* channel, const Geometry& geometry, const Request& request);

}  // namespace isotherm::exchange

#endif  // ISOTHERM_TESTS_EXCHANGE_HARNESS_H_
