#include "cpu_worker/worker.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "common/kernels/tolerance.h"
#include "common/neuron/mask.h"
#include "common/observe/metrics.h"
#include "common/rpc/call.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "tests/cpu_worker/harness.h"

namespace isotherm::cpu_worker {
namespace {

using exchange::Transport;
using neuron::MaskWords;

// One layer's question to the worker, about the cold neurons of a placement.
struct Question {
  int64_t layer = 0;
  int64_t rows = 0;
  std::vector<float> x;
  std::vector<uint64_t> masks;
  bool dense = false;
};

Question RandomQuestion(const model::Hyperparameters& model, const neuron::Placement& placement,
                        int64_t layer, int64_t rows, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::bernoulli_distribution wanted(0.5);
  Question question{layer, rows, std::vector<float>(rows * model.hidden),
                    std::vector<uint64_t>(rows * MaskWords(model.ffn)), false};
  for (float& value : question.x) value = normal(random);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t j = 0; j < model.ffn; ++j) {
      if (!neuron::TestBit(placement.hot[layer].data(), j) && wanted(random)) {
        neuron::SetBit(&question.masks[row * MaskWords(model.ffn)], j);
      }
    }
  }
  return question;
}

struct Reply {
  std::vector<float> y;
  neuron::FfnStatistics statistics;
};

absl::StatusOr<Reply> Ask(exchange::Channel& channel, const Question& question,
                          const std::vector<float>& gate_values, uint64_t epoch) {
  exchange::RequestHeader header;
  header.step = 1;
  header.layer = question.layer;
  header.rows = question.rows;
  header.placement_epoch = epoch;
  header.dense = question.dense;
  header.has_gate_values = !gate_values.empty();
  absl::StatusOr<exchange::RequestBuffers> buffers = channel.Begin(header);
  if (!buffers.ok()) return buffers.status();
  std::copy(question.x.begin(), question.x.end(), buffers->x);
  std::copy(question.masks.begin(), question.masks.end(), buffers->masks);
  std::copy(gate_values.begin(), gate_values.end(), buffers->gate_values);
  if (absl::Status sent = channel.Send(static_cast<int64_t>(gate_values.size())); !sent.ok()) return sent;
  const absl::StatusOr<exchange::Channel::Answer> answer = channel.Await();
  if (!answer.ok()) return answer.status();
  return Reply{std::vector<float>(answer->y, answer->y + question.x.size()),
               {answer->computed, answer->active}};
}

// The values a GPU worker with the model's gate matrix would send along.
std::vector<float> GateValues(const neuron::LayerWeights& layer, const Question& question, int64_t ffn) {
  std::vector<float> values;
  for (int64_t row = 0; row < question.rows; ++row) {
    neuron::ForEachSet(&question.masks[row * MaskWords(ffn)], MaskWords(ffn), [&](int64_t j) {
      double sum = 0;
      for (int64_t h = 0; h < layer.hidden; ++h) {
        sum += static_cast<double>(layer.Gate(j)[h]) * question.x[row * layer.hidden + h];
      }
      values.push_back(static_cast<float>(sum));
    });
  }
  return values;
}

void ExpectMatchesReference(const Reply& reply, const neuron::LayerWeights& layer,
                            const model::Hyperparameters& model, const Question& question) {
  neuron::FfnRequest request;
  request.rows = question.rows;
  request.x = question.x.data();
  request.masks = question.masks.data();
  request.ffn = model.ffn;
  request.activation = model.activation;
  request.activation_threshold = model.activation_threshold;
  std::vector<int32_t> neurons(model.ffn);
  for (int64_t j = 0; j < model.ffn; ++j) neurons[j] = static_cast<int32_t>(j);
  const neuron::ReferenceResult reference = neuron::Reference(layer, neurons, request);
  EXPECT_EQ(reply.statistics.computed, reference.statistics.computed);
  EXPECT_LE(std::abs(reply.statistics.active - reference.statistics.active), reference.undecided);
  for (size_t i = 0; i < reply.y.size(); ++i) {
    ASSERT_TRUE(kernels::Within(reply.y[i], reference.y[i], reference.bound[i]))
        << "y[" << i << "] is " << reply.y[i] << ", expected " << reference.y[i];
  }
}

struct ExchangeCase {
  std::string name;
  gguf::TensorType type;
  bool transposed_down;
  std::string activation;
};

class WorkerExchangeTest : public ::testing::TestWithParam<ExchangeCase> {};

INSTANTIATE_TEST_SUITE_P(Models, WorkerExchangeTest,
                         ::testing::Values(ExchangeCase{"F32Relu", gguf::TensorType::kF32, false, "relu"},
                                           ExchangeCase{"F16Relu", gguf::TensorType::kF16, false, "relu"},
                                           ExchangeCase{"F16Silu", gguf::TensorType::kF16, false, "silu"},
                                           ExchangeCase{"Q8FatRelu", gguf::TensorType::kQ8_0, true,
                                                        "fatrelu"}),
                         [](const auto& info) { return info.param.name; });

TEST_P(WorkerExchangeTest, AnswersEqualTheReferenceOverBothTransports) {
  testing::TinyLlamaOptions llama;
  llama.type = GetParam().type;
  llama.transposed_down = GetParam().transposed_down;
  llama.activation = GetParam().activation;
  llama.activation_threshold = llama.activation == "fatrelu" ? 0.05f : 0.0f;
  RunningWorker running(llama);
  running.AwaitReady();
  const model::Hyperparameters& parameters = running.model().hyperparameters();
  const neuron::Placement placement = ThirdHot(parameters);
  ASSERT_TRUE(running.Apply(running.PlacementRequest(placement)).ok());

  std::vector<std::vector<float>> first_transport;
  for (Transport transport : {Transport::kSharedMemory, Transport::kInline}) {
    absl::StatusOr<std::unique_ptr<exchange::Channel>> channel =
        exchange::Connect(&running.stub(), running.ClientFor(placement, transport));
    ASSERT_TRUE(channel.ok()) << channel.status();
    ASSERT_EQ((*channel)->transport(), transport);
    (*channel)->BeginStep(1);
    std::vector<std::vector<float>> answers;
    for (int64_t rows : {1, 3, 16, 40}) {
      for (int64_t layer = 0; layer < parameters.layers; ++layer) {
        const neuron::LayerWeights weights = ReadLayer(running.model(), layer);
        Question question = RandomQuestion(parameters, placement, layer, rows, 100 * layer + rows);
        for (bool dense : {false, true}) {
          question.dense = dense;
          const absl::StatusOr<Reply> reply = Ask(**channel, question, {}, placement.epoch);
          ASSERT_TRUE(reply.ok()) << reply.status();
          ExpectMatchesReference(*reply, weights, parameters, question);
          answers.push_back(reply->y);
        }
        question.dense = false;
        const absl::StatusOr<Reply> given =
            Ask(**channel, question, GateValues(weights, question, parameters.ffn), placement.epoch);
        ASSERT_TRUE(given.ok()) << given.status();
        ExpectMatchesReference(*given, weights, parameters, question);
        answers.push_back(given->y);
      }
    }
    (*channel)->EndStep();
    if (transport == Transport::kSharedMemory) {
      first_transport = answers;
    } else {
      EXPECT_EQ(answers, first_transport) << "the transports differ";
    }
  }
}

TEST(WorkerTest, DescribesItself) {
  RunningWorker running({});
  running.AwaitReady();
  const worker::v1::GetNeuronWorkerResponse description = running.Describe();
  EXPECT_EQ(description.model_digest(), running.model().digest());
  EXPECT_EQ(description.layers(), 2u);
  EXPECT_EQ(description.hidden_size(), 64u);
  EXPECT_EQ(description.ffn_size(), 96u);
  EXPECT_EQ(description.bundle_layout_version(), neuron::kBundleLayoutVersion);
  EXPECT_EQ(description.threads(), 2u);
  EXPECT_GE(description.bundle_bytes(), 2u * 96 * 3 * 64 * 4);
  EXPECT_GT(description.read_bandwidth(), 0);
  EXPECT_EQ(description.not_ready_cause(), "");
  EXPECT_EQ(description.instance_id().size(), 32u);
}

TEST(WorkerTest, CountsWhatItComputed) {
  RunningWorker running({});
  running.AwaitReady();
  const model::Hyperparameters& parameters = running.model().hyperparameters();
  neuron::Placement placement = ThirdHot(parameters);
  placement.epoch = 1234;
  ASSERT_TRUE(running.Apply(running.PlacementRequest(placement)).ok());
  absl::StatusOr<std::unique_ptr<exchange::Channel>> channel =
      exchange::Connect(&running.stub(), running.ClientFor(placement, Transport::kAuto));
  ASSERT_TRUE(channel.ok()) << channel.status();
  ASSERT_TRUE(Ask(**channel, RandomQuestion(parameters, placement, 0, 5, 1), {}, placement.epoch).ok());
  const std::string metrics = observe::Registry::Global().Render();
  for (const std::string name :
       {"isotherm_cpu_worker_exchanges_total", "isotherm_cpu_worker_rows_total",
        "isotherm_cpu_worker_neurons_computed_total", "isotherm_cpu_worker_neurons_active_total",
        "isotherm_cpu_worker_neuron_bytes_total", "isotherm_cpu_worker_exchange_compute_seconds_count",
        "isotherm_cpu_worker_bundle_bytes", "isotherm_cpu_worker_threads 2",
        "isotherm_cpu_worker_placement_epoch 1234"}) {
    EXPECT_NE(metrics.find("\n" + name), std::string::npos) << name;
  }
}

absl::StatusOr<worker::v1::GetFiringCountsResponse> FiringCounts(RunningWorker& running) {
  grpc::ClientContext context;
  worker::v1::GetFiringCountsResponse response;
  const grpc::Status status = running.stub().GetFiringCounts(&context, {}, &response);
  if (!status.ok()) return rpc::FromGrpc(status);
  return response;
}

TEST(WorkerTest, CountsFiringsSinceTheExchangeWasOpened) {
  RunningWorker running({});
  running.AwaitReady();
  const model::Hyperparameters& parameters = running.model().hyperparameters();
  const neuron::Placement placement = ThirdHot(parameters);
  ASSERT_TRUE(running.Apply(running.PlacementRequest(placement)).ok());
  EXPECT_EQ(FiringCounts(running).status().code(), absl::StatusCode::kFailedPrecondition) << "none is open";
  for (int life = 0; life < 2; ++life) {
    absl::StatusOr<std::unique_ptr<exchange::Channel>> channel =
        exchange::Connect(&running.stub(), running.ClientFor(placement, Transport::kAuto));
    ASSERT_TRUE(channel.ok()) << channel.status();
    std::vector<int64_t> active(parameters.layers);
    for (int64_t rows : {1, 40}) {
      for (int64_t layer = 0; layer < parameters.layers; ++layer) {
        const auto reply =
            Ask(**channel, RandomQuestion(parameters, placement, layer, rows, rows), {}, placement.epoch);
        ASSERT_TRUE(reply.ok()) << reply.status();
        active[layer] += reply->statistics.active;
      }
    }
    const absl::StatusOr<worker::v1::GetFiringCountsResponse> counts = FiringCounts(running);
    ASSERT_TRUE(counts.ok()) << counts.status();
    ASSERT_EQ(counts->layers_size(), parameters.layers);
    for (int layer = 0; layer < parameters.layers; ++layer) {
      const auto& neurons = counts->layers(layer).neurons();
      ASSERT_EQ(neurons.size(), parameters.ffn);
      EXPECT_GT(active[layer], 0);
      EXPECT_EQ(std::accumulate(neurons.begin(), neurons.end(), int64_t{0}), active[layer]);
      for (int64_t j = 0; j < parameters.ffn; ++j) {
        const bool hot = neuron::TestBit(placement.hot[layer].data(), j);
        EXPECT_TRUE(!hot || neurons[j] == 0) << j;
      }
    }
  }
}

TEST(WorkerTest, RefusesAnotherModelsOrAHostilePlacement) {
  RunningWorker running({});
  const worker::v1::ApplyPlacementRequest good =
      running.PlacementRequest(ThirdHot(running.model().hyperparameters()));
  worker::v1::ApplyPlacementRequest request = good;
  request.set_model_digest("0123");
  const absl::Status other_model = running.Apply(request);
  EXPECT_EQ(other_model.code(), absl::StatusCode::kFailedPrecondition) << other_model;
  EXPECT_NE(std::string(other_model.message()).find(running.model().digest()), std::string::npos)
      << other_model;
  request = good;
  request.mutable_layers(1)->mutable_hot_mask()->resize(3);
  const absl::Status hostile = running.Apply(request);
  EXPECT_EQ(rpc::ViolatedField(hostile).value_or(""), "layers[1].hot_mask") << hostile;
  EXPECT_TRUE(running.Apply(good).ok());
  EXPECT_TRUE(running.Apply(good).ok()) << "idempotent";
}

TEST(WorkerTest, RefusesAnExchangeThatDoesNotFitThePlacement) {
  RunningWorker running({});
  running.AwaitReady();
  const neuron::Placement placement = ThirdHot(running.model().hyperparameters());
  const exchange::ClientOptions good = running.ClientFor(placement, Transport::kAuto);
  const absl::Status unplaced = exchange::Connect(&running.stub(), good).status();
  EXPECT_EQ(unplaced.code(), absl::StatusCode::kFailedPrecondition) << unplaced;
  ASSERT_TRUE(running.Apply(running.PlacementRequest(placement)).ok());

  const std::vector<std::pair<std::string, void (*)(exchange::ClientOptions&)>> cases = {
      {"model digest", [](exchange::ClientOptions& options) { options.model_digest = "other"; }},
      {"placement digest",
       [](exchange::ClientOptions& options) { options.placement_digest = "0000000000000000"; }},
      {"placement epoch", [](exchange::ClientOptions& options) { options.placement_epoch += 1; }},
      {"hidden size", [](exchange::ClientOptions& options) { options.geometry.hidden += 1; }},
      {"layers", [](exchange::ClientOptions& options) { options.geometry.layers = 1; }}};
  for (const auto& [what, spoil] : cases) {
    exchange::ClientOptions options = good;
    spoil(options);
    const absl::Status status = exchange::Connect(&running.stub(), options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << what << ": " << status;
    EXPECT_NE(std::string(status.message()).find(what), std::string::npos) << status;
  }
  EXPECT_TRUE(exchange::Connect(&running.stub(), good).ok());
}

TEST(WorkerTest, RefusesMasksThatNameHotNeurons) {
  RunningWorker running({});
  running.AwaitReady();
  const model::Hyperparameters& parameters = running.model().hyperparameters();
  const neuron::Placement placement = ThirdHot(parameters);
  ASSERT_TRUE(running.Apply(running.PlacementRequest(placement)).ok());
  absl::StatusOr<std::unique_ptr<exchange::Channel>> channel =
      exchange::Connect(&running.stub(), running.ClientFor(placement, Transport::kAuto));
  ASSERT_TRUE(channel.ok()) << channel.status();
  Question question = RandomQuestion(parameters, placement, 0, 1, 1);
  neuron::SetBit(question.masks.data(), 3);
  EXPECT_FALSE(Ask(**channel, question, {}, placement.epoch).ok());
  EXPECT_TRUE((*channel)->failed());
}

TEST(WorkerTest, ServesOneGpuWorkerAtATimeAndTheNextAfterIt) {
  RunningWorker running({});
  running.AwaitReady();
  const model::Hyperparameters& parameters = running.model().hyperparameters();
  const neuron::Placement placement = ThirdHot(parameters);
  ASSERT_TRUE(running.Apply(running.PlacementRequest(placement)).ok());
  const exchange::ClientOptions options = running.ClientFor(placement, Transport::kAuto);
  const Question question = RandomQuestion(parameters, placement, 1, 2, 1);
  absl::StatusOr<std::unique_ptr<exchange::Channel>> first = exchange::Connect(&running.stub(), options);
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::Status second = exchange::Connect(&running.stub(), options).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kUnavailable) << second;
  EXPECT_TRUE(Ask(**first, question, {}, placement.epoch).ok()) << "the first was disturbed";
  for (int i = 0; i < 3; ++i) {
    first->reset();
    first = exchange::Connect(&running.stub(), options);
    ASSERT_TRUE(first.ok()) << first.status();
    EXPECT_TRUE(Ask(**first, question, {}, placement.epoch).ok());
  }
}

TEST(WorkerTest, DrainEndsAnIdleExchangeAtOnce) {
  RunningWorker running({});
  running.AwaitReady();
  const neuron::Placement placement = ThirdHot(running.model().hyperparameters());
  ASSERT_TRUE(running.Apply(running.PlacementRequest(placement)).ok());
  const absl::StatusOr<std::unique_ptr<exchange::Channel>> channel =
      exchange::Connect(&running.stub(), running.ClientFor(placement, Transport::kAuto));
  ASSERT_TRUE(channel.ok()) << channel.status();
  const absl::Time start = absl::Now();
  EXPECT_TRUE(running.Stop().ok());
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

TEST(WorkerTest, DrainRefusesWhoWaitsForTheExchange) {
  RunningWorker running({});
  running.AwaitReady();
  const neuron::Placement placement = ThirdHot(running.model().hyperparameters());
  ASSERT_TRUE(running.Apply(running.PlacementRequest(placement)).ok());
  const exchange::ClientOptions options = running.ClientFor(placement, Transport::kAuto);
  const auto first = exchange::Connect(&running.stub(), options);
  ASSERT_TRUE(first.ok()) << first.status();
  auto second = std::async(std::launch::async, [&] { return exchange::Connect(&running.stub(), options); });
  const absl::Time start = absl::Now();
  while (rpc::RunningCalls() < 2 && absl::Now() - start < absl::Seconds(1)) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_TRUE(running.Stop().ok());
  EXPECT_LT(absl::Now() - start, absl::Seconds(10)) << "an exchange opened that nobody ended";
  EXPECT_EQ(second.get().status().code(), absl::StatusCode::kUnavailable);
}

// The service alone, before a model is there.
TEST(NeuronServiceTest, ExchangeWaitsForTheModel) {
  TempDirectory directory;
  NeuronService service({.digest = "d", .layers = 1, .hidden = 32, .ffn = 64}, {});
  service.SetNotReady("loading model");
  rpc::ServerOptions options;
  options.listen = {"unix:" + directory.path() + "/s.sock"};
  const absl::StatusOr<std::unique_ptr<rpc::Server>> server = rpc::Server::Start(options, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto stub = worker::v1::NeuronService::NewStub(rpc::MakeChannel(options.listen[0]));
  exchange::ClientOptions client;
  client.geometry = {1, 32, 64, 1, false};
  const absl::Status status = exchange::Connect(stub.get(), client).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(std::string(status.message()).find("loading model"), std::string::npos) << status;
}

TEST(WorkerTest, RefusesAModelThatCannotFitBeforeItListens) {
  TempDirectory directory;
  WorkerOptions options;
  options.model_path = testing::WriteFile(directory.path() + "/tiny.gguf", testing::TinyLlama({}));
  options.server.listen = {"unix:" + directory.path() + "/s.sock"};
  options.available_memory = [] { return int64_t{50'000'000}; };
  const absl::Status status = Worker::Create(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  for (const std::string part : {"tiny.gguf", "0.050 GB are available", "needed"}) {
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << status;
  }
}

TEST(WorkerTest, FailsToStartWithoutAModelOrAnAddress) {
  TempDirectory directory;
  WorkerOptions options;
  options.model_path = directory.path() + "/missing.gguf";
  options.server.listen = {"unix:" + directory.path() + "/s.sock"};
  EXPECT_FALSE(Worker::Create(options).ok());
  options.model_path = testing::WriteFile(directory.path() + "/tiny.gguf", testing::TinyLlama({}));
  options.server.listen = {"unix:" + directory.path() + "/no/such/folder/s.sock"};
  EXPECT_FALSE(Worker::Create(options).ok());
}

}  // namespace
}  // namespace isotherm::cpu_worker
