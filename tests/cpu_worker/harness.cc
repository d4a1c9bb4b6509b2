#include "tests/cpu_worker/harness.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <utility>

#include "absl/time/clock.h"
#include "common/kernels/packed_row.h"
#include "common/neuron/bundle.h"
#include "common/neuron/mask.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"

namespace isotherm::cpu_worker {
namespace {

std::vector<float> ReadRows(const model::Model& model, const model::TensorRef& tensor) {
  const kernels::WeightType type = *neuron::PackedWeightType(*tensor.info);
  const uint8_t* data = model.file().Data(*tensor.info).data();
  std::vector<float> values(tensor.rows * tensor.columns);
  for (int64_t row = 0; row < tensor.rows; ++row) {
    kernels::UnpackFileRow(type, data + row * kernels::FileRowBytes(type, tensor.columns), tensor.columns,
                           &values[row * tensor.columns]);
  }
  return values;
}

std::vector<float> Transpose(const std::vector<float>& values, int64_t rows, int64_t columns) {
  std::vector<float> transposed(values.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) transposed[c * rows + r] = values[r * columns + c];
  }
  return transposed;
}

}  // namespace

TempDirectory::TempDirectory() {
  std::string path = "/tmp/cpu_worker_test.XXXXXX";
  if (mkdtemp(path.data()) == nullptr) std::abort();
  path_ = path;
}

TempDirectory::~TempDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

neuron::LayerWeights ReadLayer(const model::Model& model, int64_t layer) {
  const model::Layer& tensors = model.layers()[layer];
  neuron::LayerWeights weights;
  weights.hidden = model.hyperparameters().hidden;
  weights.type = *neuron::PackedWeightType(*tensors.gate.info);
  weights.gate = ReadRows(model, tensors.gate);
  weights.up = ReadRows(model, tensors.up);
  weights.down = ReadRows(model, tensors.down);
  if (!tensors.down_transposed)
    weights.down = Transpose(weights.down, tensors.down.rows, tensors.down.columns);
  return weights;
}

neuron::Placement ThirdHot(const model::Hyperparameters& model) {
  neuron::Placement placement = neuron::AllCold(model.layers, model.ffn);
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    for (int64_t j = layer % 3; j < model.ffn; j += 3) neuron::SetBit(placement.hot[layer].data(), j);
  }
  return placement;
}

RunningWorker::RunningWorker(const testing::TinyLlamaOptions& llama, exchange::Transport transport) {
  Start(testing::WriteFile(directory_.path() + "/tiny.gguf", testing::TinyLlama(llama)), transport);
}

RunningWorker::RunningWorker(exchange::Transport transport, const std::string& model_path) {
  Start(model_path, transport);
}

void RunningWorker::Start(const std::string& model_path, exchange::Transport transport) {
  WorkerOptions options;
  options.model_path = model_path;
  options.threads = 2;
  const std::string address = "unix:" + directory_.path() + "/worker.sock";
  options.server.listen = {address};
  options.exchange.transport = transport;
  model_ = *model::Model::Open(options.model_path);
  absl::StatusOr<std::unique_ptr<Worker>> worker = Worker::Create(options);
  if (!worker.ok()) ADD_FAILURE() << worker.status();
  worker_ = *std::move(worker);
  stub_ = worker::v1::NeuronService::NewStub(rpc::MakeChannel(address));
  serving_ = std::thread([this] { served_ = worker_->ServeUntilSignal(); });
}

RunningWorker::~RunningWorker() {
  if (!serving_.joinable()) return;
  const absl::Status stopped = Stop();
  EXPECT_TRUE(stopped.ok()) << stopped;
}

worker::v1::GetNeuronWorkerResponse RunningWorker::Describe() {
  grpc::ClientContext context;
  worker::v1::GetNeuronWorkerResponse response;
  const grpc::Status status = stub_->GetNeuronWorker(&context, {}, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response;
}

void RunningWorker::AwaitReady() {
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (!Describe().ready()) {
    ASSERT_LT(absl::Now(), deadline) << "the worker never became ready";
    absl::SleepFor(absl::Milliseconds(5));
  }
}

worker::v1::ApplyPlacementRequest RunningWorker::PlacementRequest(const neuron::Placement& placement) const {
  worker::v1::ApplyPlacementRequest request;
  request.set_model_digest(model_->digest());
  request.set_epoch(placement.epoch);
  request.set_digest(placement.Digest());
  for (const std::vector<uint64_t>& hot : placement.hot) {
    request.add_layers()->set_hot_mask(hot.data(), hot.size() * sizeof(uint64_t));
  }
  return request;
}

absl::Status RunningWorker::Apply(const worker::v1::ApplyPlacementRequest& request) {
  grpc::ClientContext context;
  worker::v1::ApplyPlacementResponse response;
  return rpc::FromGrpc(stub_->ApplyPlacement(&context, request, &response));
}

exchange::ClientOptions RunningWorker::ClientFor(const neuron::Placement& placement,
                                                 exchange::Transport transport) const {
  const model::Hyperparameters& parameters = model_->hyperparameters();
  exchange::ClientOptions options;
  options.transport = transport;
  options.model_digest = model_->digest();
  options.placement_epoch = placement.epoch;
  options.placement_digest = placement.Digest();
  options.geometry = {parameters.layers, parameters.hidden, parameters.ffn, /*max_rows=*/64,
                      /*gate_values=*/true};
  return options;
}

absl::Status RunningWorker::Stop() {
  worker_->server().Shutdown();
  serving_.join();
  return served_;
}

}  // namespace isotherm::cpu_worker
