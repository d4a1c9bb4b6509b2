#ifndef ISOTHERM_CPU_WORKER_WORKER_H_
#define ISOTHERM_CPU_WORKER_WORKER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/host.h"
#include "common/base/thread_pool.h"
#include "common/exchange/channel.h"
#include "common/model/model.h"
#include "common/rpc/server.h"
#include "cpu_worker/execute/neuron_executor.h"
#include "cpu_worker/service/neuron_service.h"
#include "cpu_worker/store/store.h"

namespace isotherm::cpu_worker {

struct WorkerOptions {
  std::string model_path;
  int threads = 1;
  // How long threads spin for work before they park.
  int spin_us = 0;
  bool pin = false;
  rpc::ServerOptions server;
  exchange::ServerOptions exchange;
  // Bytes that may be taken; tests show another machine.
  std::function<absl::StatusOr<int64_t>()> available_memory = [] { return base::AvailableMemory(); };
};

// The process: one model's neurons behind one server. It listens at once and loads in the background; health
// says so.
class Worker {
 public:
  // Fails before anything is served where the model cannot be read or cannot fit, or an address cannot be
  // listened on.
  static absl::StatusOr<std::unique_ptr<Worker>> Create(const WorkerOptions& options);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  rpc::Server& server() { return *server_; }

  // Returns once drained after a signal; with the error if loading failed, which also ends it.
  absl::Status ServeUntilSignal();

 private:
  Worker(const WorkerOptions& options, std::unique_ptr<model::Model> model, StorePlan plan);

  void LoadThenServe();
  absl::Status Load();

  const WorkerOptions options_;
  const std::unique_ptr<model::Model> model_;
  StorePlan plan_;  // until it is moved into the store
  base::ThreadPool pool_;
  NeuronService service_;
  // Written by the loader before the service is ready.
  std::unique_ptr<Store> store_;
  std::unique_ptr<NeuronExecutor> executor_;
  absl::Status load_status_;
  // Calls end before what they use.
  std::unique_ptr<rpc::Server> server_;
  std::atomic<bool> stop_loading_{false};
  std::thread loader_;
};

}  // namespace isotherm::cpu_worker

#endif  // ISOTHERM_CPU_WORKER_WORKER_H_
