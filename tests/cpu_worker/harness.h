#ifndef ISOTHERM_TESTS_CPU_WORKER_HARNESS_H_
#define ISOTHERM_TESTS_CPU_WORKER_HARNESS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/exchange/channel.h"
#include "common/model/model.h"
#include "common/neuron/placement.h"
#include "cpu_worker/worker.h"
#include "isotherm/worker/v1/neuron.grpc.pb.h"
#include "tests/gguf/tiny_llama.h"
#include "tests/neuron/ffn_reference.h"

namespace isotherm::cpu_worker {

// A directory of its own under /tmp, removed with what is in it.
class TempDirectory {
 public:
  TempDirectory();
  ~TempDirectory();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// The FFN of one layer as the file holds it.
neuron::LayerWeights ReadLayer(const model::Model& model, int64_t layer);

// Every third neuron hot, the pattern shifting by one from layer to layer.
neuron::Placement ThirdHot(const model::Hyperparameters& model);

// A worker in this process on a Unix socket, serving a model, and a client's stub for it.
class RunningWorker {
 public:
  explicit RunningWorker(const testing::TinyLlamaOptions& llama,
                         exchange::Transport transport = exchange::Transport::kAuto);
  RunningWorker(exchange::Transport transport, const std::string& model_path);
  ~RunningWorker();

  const model::Model& model() const { return *model_; }
  Worker& worker() { return *worker_; }
  worker::v1::NeuronService::Stub& stub() { return *stub_; }

  worker::v1::GetNeuronWorkerResponse Describe();
  // Until the model is loaded.
  void AwaitReady();
  worker::v1::ApplyPlacementRequest PlacementRequest(const neuron::Placement& placement) const;
  absl::Status Apply(const worker::v1::ApplyPlacementRequest& request);
  // What a GPU worker would open; `max_rows` 64, with gate values.
  exchange::ClientOptions ClientFor(const neuron::Placement& placement, exchange::Transport transport) const;
  // Ends the server as a signal would and returns what it served until then.
  absl::Status Stop();

 private:
  void Start(const std::string& model_path, exchange::Transport transport);

  TempDirectory directory_;
  std::unique_ptr<model::Model> model_;
  std::unique_ptr<Worker> worker_;
  std::unique_ptr<worker::v1::NeuronService::Stub> stub_;
  absl::Status served_;
  std::thread serving_;
};

}  // namespace isotherm::cpu_worker

#endif  // ISOTHERM_TESTS_CPU_WORKER_HARNESS_H_
