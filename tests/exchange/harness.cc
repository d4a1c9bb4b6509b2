#include "tests/exchange/harness.h"

#include <stdlib.h>

#include <bit>
#include <chrono>
#include <cstring>
#include <deque>
#include <filesystem>
#include <utility>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/neuron/mask.h"

namespace isotherm::exchange {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014).
uint64_t Mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

template <typename T>
uint64_t HashOf(uint64_t hash, const T* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    uint64_t bits = 0;
    std::memcpy(&bits, values + i, sizeof(T));
    hash = Mix(hash ^ bits);
  }
  return hash;
}

}  // namespace

TempDirectory::TempDirectory(const std::string& parent) : path_(parent + "/isotherm-test-XXXXXX") {
  if (mkdtemp(path_.data()) == nullptr) path_.clear();
}

TempDirectory::~TempDirectory() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

std::vector<std::string> TempDirectory::Files() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path_))
    names.push_back(entry.path().filename());
  return names;
}

absl::StatusOr<ServerAnswer> FakeExecutor::Execute(const ServerRequest& request, float* y) {
  return hook ? hook(request, y) : Answer(geometry_, request, y);
}

void FakeExecutor::OnExpectation(int64_t layer, const uint64_t* mask, absl::FunctionRef<bool()> stop) {
  ++expectations_;
  Expected expected{layer, std::vector<uint64_t>(mask, mask + neuron::MaskWords(geometry_.ffn)), false};
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  while (!(expected.request_came = stop()) && absl::Now() < deadline) absl::SleepFor(absl::Microseconds(50));
  const std::lock_guard lock(mutex_);
  expected_.push_back(std::move(expected));
}

std::vector<FakeExecutor::Expected> FakeExecutor::TakeExpected() {
  const std::lock_guard lock(mutex_);
  return std::exchange(expected_, {});
}

bool FakeExecutor::AwaitExpectations(int count) const {
  const absl::Time deadline = absl::Now() + absl::Seconds(5);
  while (expectations_ < count && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(1));
  return expectations_ >= count;
}

ServerAnswer FakeExecutor::Answer(const Geometry& geometry, const ServerRequest& request, float* y) {
  const RequestHeader& header = request.header;
  const int64_t words = neuron::MaskWords(geometry.ffn);
  uint64_t common = Mix(header.step);
  common = Mix(common ^ static_cast<uint64_t>(header.layer) ^ (header.dense ? 1u << 31 : 0));
  int64_t computed = 0;
  for (int64_t w = 0; w < header.rows * words; ++w) computed += std::popcount(request.masks[w]);
  if (request.gate_values != nullptr) common = HashOf(common, request.gate_values, computed);
  for (int64_t row = 0; row < header.rows; ++row) {
    const auto key = static_cast<uint32_t>(HashOf(common, request.masks + row * words, words));
    for (int64_t i = row * geometry.hidden; i < (row + 1) * geometry.hidden; ++i) {
      uint32_t bits;
      std::memcpy(&bits, request.x + i, sizeof(bits));
      bits ^= key;
      std::memcpy(y + i, &bits, sizeof(bits));
    }
  }
  return {.computed = computed, .active = computed / 2};
}

class TestServer::Service final : public worker::v1::NeuronService::Service {
 public:
  explicit Service(Handler handler) : handler_(std::move(handler)) {}

  grpc::Status Exchange(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<worker::v1::ExchangeResponse, worker::v1::ExchangeRequest>* stream) override {
    ++running;
    const absl::Status status = handler_(context, stream);
    --running;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      results_.push_back(status);
    }
    changed_.notify_all();
    return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
  }

  std::optional<absl::Status> TakeResult(absl::Duration timeout) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!changed_.wait_for(lock, absl::ToChronoMilliseconds(timeout), [this] { return !results_.empty(); })) {
      return std::nullopt;
    }
    const absl::Status result = results_.front();
    results_.pop_front();
    return result;
  }

  std::atomic<int> running{0};

 private:
  const Handler handler_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<absl::Status> results_;
};

TestServer::TestServer(const std::string& socket, Handler handler)
    : service_(std::make_unique<Service>(std::move(handler))) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
  builder.SetMaxReceiveMessageSize(64 << 20);
  builder.RegisterService(service_.get());
  server_ = builder.BuildAndStart();
}

TestServer::TestServer(const std::string& socket, const ServerOptions& options, const ServerPolicy& policy,
                       Executor* executor)
    : TestServer(socket, [=](grpc::ServerContext* context, auto* stream) {
        return ServeExchange(
            context, stream, options, [policy] { return policy; }, executor);
      }) {}

TestServer::~TestServer() {
  if (server_ == nullptr) return;
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

int TestServer::calls_running() const { return service_->running; }

std::optional<absl::Status> TestServer::TakeResult(absl::Duration timeout) {
  return service_->TakeResult(timeout);
}

std::unique_ptr<worker::v1::NeuronService::Stub> MakeStub(const std::string& socket) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(64 << 20);
  // A connection of its own, not one that gRPC keeps for every stub of this address.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  return worker::v1::NeuronService::NewStub(
      grpc::CreateCustomChannel("unix:" + socket, grpc::InsecureChannelCredentials(), arguments));
}

Geometry SmallGeometry() { return {.layers = 3, .hidden = 5, .ffn = 70, .max_rows = 4, .gate_values = true}; }

ServerPolicy PolicyFor(const Geometry& geometry) {
  return {.model_digest = "model",
          .placement_epoch = 7,
          .placement_digest = "placement",
          .layers = geometry.layers,
          .hidden = geometry.hidden,
          .ffn = geometry.ffn};
}

ClientOptions ClientFor(const Geometry& geometry, Transport transport, const std::string& shm_directory) {
  return {.transport = transport,
          .shm_directory = shm_directory,
          .model_digest = "model",
          .placement_epoch = 7,
          .placement_digest = "placement",
          .geometry = geometry};
}

Request RandomRequest(const Geometry& geometry, const RequestHeader& header, uint64_t seed) {
  Request request{.header = header};
  request.header.placement_epoch = 7;
  uint64_t state = Mix(seed);
  const int64_t words = neuron::MaskWords(geometry.ffn);
  request.x.resize(static_cast<size_t>(header.rows * geometry.hidden));
  for (float& value : request.x) {
    const auto bits = static_cast<uint32_t>(state = Mix(state));  // every bit pattern, NaNs included
    std::memcpy(&value, &bits, sizeof(bits));
  }
  request.masks.resize(static_cast<size_t>(header.rows * words));
  int64_t bits = 0;
  for (int64_t row = 0; row < header.rows; ++row) {
    uint64_t* mask = request.masks.data() + row * words;
    for (int64_t w = 0; w < words; ++w) mask[w] = state = Mix(state);
    if (geometry.ffn % 64 != 0) mask[words - 1] &= (uint64_t{1} << (geometry.ffn % 64)) - 1;
    for (int64_t w = 0; w < words; ++w) bits += std::popcount(mask[w]);
  }
  if (header.has_gate_values) {
    request.gate_values.resize(static_cast<size_t>(bits));
    for (float& value : request.gate_values)
      value = static_cast<float>(static_cast<int32_t>(state = Mix(state)));
  }
  return request;
}

absl::Status Dispatch(Channel* channel, const Request& request) {
  ISOTHERM_ASSIGN_OR_RETURN(const RequestBuffers buffers, channel->Begin(request.header));
  const auto copy = [](const auto& from, auto* to) {
    std::memcpy(to, from.data(), from.size() * sizeof(from[0]));
  };
  copy(request.x, buffers.x);
  copy(request.masks, buffers.masks);
  if (request.header.has_gate_values) copy(request.gate_values, buffers.gate_values);
  return channel->Send(static_cast<int64_t>(request.gate_values.size()));
}

absl::Status Collect(Channel* channel, const Geometry& geometry, const Request& request) {
  ISOTHERM_ASSIGN_OR_RETURN(const Channel::Answer answer, channel->Await());

  thread_local std::vector<float> expected;
  expected.resize(request.x.size());
  const ServerAnswer counts = FakeExecutor::Answer(
      geometry,
      {.header = request.header,
       .x = request.x.data(),
       .masks = request.masks.data(),
       .gate_values = request.header.has_gate_values ? request.gate_values.data() : nullptr},
      expected.data());
  if (std::memcmp(answer.y, expected.data(), expected.size() * sizeof(float)) != 0) {
    return absl::DataLossError("the answer's bytes differ from the expected ones");
  }
  if (answer.computed != counts.computed || answer.active != counts.active) {
    return absl::DataLossError("the answer's counts differ from the expected ones");
  }
  return absl::OkStatus();
}

absl::Status RoundTrip(Channel* channel, const Geometry& geometry, const Request& request) {
  ISOTHERM_RETURN_IF_ERROR(Dispatch(channel, request));
  return Collect(channel, geometry, request);
}

}  // namespace isotherm::exchange
