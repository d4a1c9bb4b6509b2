#ifndef ISOTHERM_CPU_WORKER_STORE_STORE_H_
#define ISOTHERM_CPU_WORKER_STORE_STORE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/thread_pool.h"
#include "common/exchange/shared_bundles.h"
#include "common/model/model.h"
#include "common/neuron/bundle.h"
#include "common/neuron/ffn.h"
#include "cpu_worker/store/bundle_memory.h"

namespace isotherm::cpu_worker {

// Where every layer's bundles will lie; known from the file's table alone, before a weight is read.
struct StorePlan {
  std::vector<neuron::BundleLayout> layouts;  // by layer
  std::vector<int64_t> offsets;               // of each layer's first bundle
  int64_t ffn = 0;
  int64_t bytes = 0;

  int64_t LayerBytes(int64_t layer) const { return ffn * layouts[layer].bundle_bytes; }
};
absl::StatusOr<StorePlan> PlanStore(const model::Model& model);

// What the worker is about to take from what the system has.
struct MemoryDemand {
  int64_t bundle_bytes = 0;
  int64_t workspace_bytes = 0;
  int64_t available_bytes = 0;
};
// ResourceExhausted with the numbers if it does not fit; `what` names the model.
absl::Status CheckMemory(const std::string& what, const MemoryDemand& demand);

// The bundles of all neurons of a model. Immutable once loaded; thread-safe.
class Store {
 public:
  // Reads the file once. `advance` is called after each layer with the bytes of its bundles; a status that is
  // not OK stops the loading with it. The pool is busy meanwhile.
  static absl::StatusOr<std::unique_ptr<Store>> Load(const model::Model& model, StorePlan plan,
                                                     base::ThreadPool& pool,
                                                     const std::function<absl::Status(int64_t)>& advance);

  // Every neuron of the layer.
  neuron::BundleView View(int64_t layer) const;
  const uint8_t* data() const { return memory_.data(); }
  int64_t bytes() const { return plan_.bytes; }
  // Of what another process may map, how much lies in huge pages.
  int64_t huge_page_bytes() const { return huge_page_bytes_; }
  // What another process may map; absent where the memory is this one's alone.
  std::optional<exchange::BundleFile> file() const;
  // Largest of the layers' PackReport errors; 0 where no down matrix was requantised.
  double down_requantization_error() const { return down_requantization_error_; }

 private:
  Store(StorePlan plan, BundleMemory memory) : plan_(std::move(plan)), memory_(std::move(memory)) {}

  const StorePlan plan_;
  BundleMemory memory_;
  int64_t huge_page_bytes_ = 0;
  double down_requantization_error_ = 0;
};

}  // namespace isotherm::cpu_worker

#endif  // ISOTHERM_CPU_WORKER_STORE_STORE_H_
