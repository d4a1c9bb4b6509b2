#ifndef ISOTHERM_CPU_WORKER_EXECUTE_NEURON_EXECUTOR_H_
#define ISOTHERM_CPU_WORKER_EXECUTE_NEURON_EXECUTOR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/base/mutex.h"
#include "common/base/thread_pool.h"
#include "common/exchange/channel.h"
#include "common/model/model.h"
#include "common/neuron/ffn.h"
#include "common/observe/metrics.h"
#include "cpu_worker/store/store.h"

namespace isotherm::cpu_worker {

// Most token rows of one exchange that the worker accepts.
inline constexpr int64_t kMaxRows = 4096;

// Computes what an exchange asks for from the store's bundles, and counts it. Execute and OnStep: one thread
// at a time, the exchange's. The rest is thread-safe.
class NeuronExecutor final : public exchange::Executor {
 public:
  // How long the pool's members spin between two exchanges.
  struct Spin {
    int usual_us = 0;
    int device_us = 0;  // while a step is open on a device
  };
  // The store, the model and the pool outlive it; nobody else runs the pool.
  NeuronExecutor(const Store* store, const model::Hyperparameters& model, base::ThreadPool* pool,
                 const Spin& spin);

  absl::StatusOr<exchange::ServerAnswer> Execute(const exchange::ServerRequest& request, float* y) override;
  void OnStep(exchange::StepState state) override;
  void OnExpectation(int64_t layer, const uint64_t* mask, absl::FunctionRef<bool()> stop) override;

  // How often each neuron was active, [layers][ffn], since the last call of ClearFirings. Both wait for the
  // exchange in progress.
  std::vector<std::vector<uint64_t>> Firings() const;
  void ClearFirings();

  // The bundles of these neurons one after another. Beside exchanges.
  int64_t BundleBytes(int64_t layer) const { return store_->View(layer).layout->bundle_bytes; }
  void CopyBundles(int64_t layer, absl::Span<const uint32_t> neurons, std::string& out) const;

  // Waits until no step is open, at most so long.
  void AwaitStepEnd(absl::Duration timeout) const;

 private:
  struct Metrics {
    observe::Counter exchanges, rows, computed, active, bytes, expected, expected_rightly;
    observe::Histogram seconds;
  };
  static Metrics MakeMetrics();
  // Whether the last expectation was right, by what the request after it asks for.
  void CountExpected(const exchange::ServerRequest& request);

  const Store* const store_;
  const model::Hyperparameters model_;
  base::ThreadPool* const pool_;
  const Spin spin_;
  const Metrics metrics_;
  neuron::FfnExecutor ffn_;
  // The last expectation, until the request after it.
  int64_t expected_layer_ = -1;
  std::vector<uint64_t> expected_;

  // Held over an exchange: its threads count without locks.
  mutable base::Mutex firings_mutex_;
  std::vector<std::vector<uint64_t>> firings_ ABSL_GUARDED_BY(firings_mutex_);

  mutable base::Mutex mutex_;
  bool step_open_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace isotherm::cpu_worker

#endif  // ISOTHERM_CPU_WORKER_EXECUTE_NEURON_EXECUTOR_H_
