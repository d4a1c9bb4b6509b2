#include "cpu_worker/store/store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/round_up.h"
#include "common/base/status_macros.h"

namespace isotherm::cpu_worker {
namespace {

// A layer starts on a huge page of its own, so that layers can be given to NUMA nodes or to a device one by
// one.
constexpr int64_t kLayerAlignment = 2 << 20;
// gRPC, metrics, the model's tables and the exchange's region, generously.
constexpr int64_t kProcessBytes = 128 << 20;

double Gigabytes(int64_t bytes) { return bytes * 1e-9; }

}  // namespace

absl::StatusOr<StorePlan> PlanStore(const model::Model& model) {
  StorePlan plan;
  plan.ffn = model.hyperparameters().ffn;
  for (int64_t layer = 0; layer < model.hyperparameters().layers; ++layer) {
    ISOTHERM_ASSIGN_OR_RETURN(neuron::BundleLayout layout, neuron::MakeBundleLayout(model, layer));
    plan.layouts.push_back(layout);
    plan.offsets.push_back(plan.bytes);
    plan.bytes += base::RoundUp(plan.LayerBytes(layer), kLayerAlignment);
  }
  return plan;
}

absl::Status CheckMemory(const std::string& what, const MemoryDemand& demand) {
  const int64_t needed = demand.bundle_bytes + demand.workspace_bytes + kProcessBytes;
  if (needed <= demand.available_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrFormat(
      "%s does not fit into memory: %.3f GB are needed (%.3f GB for the neurons, %.3f GB to work with), %.3f "
      "GB are available; "
      "free %.3f GB or choose a smaller quantisation",
      what, Gigabytes(needed), Gigabytes(demand.bundle_bytes), Gigabytes(needed - demand.bundle_bytes),
      Gigabytes(demand.available_bytes), Gigabytes(needed - demand.available_bytes)));
}

absl::StatusOr<std::unique_ptr<Store>> Store::Load(const model::Model& model, StorePlan plan,
                                                   base::ThreadPool& pool,
                                                   const std::function<absl::Status(int64_t)>& advance) {
  ISOTHERM_ASSIGN_OR_RETURN(BundleMemory memory, BundleMemory::Map(plan.bytes));
  std::unique_ptr<Store> store(new Store(std::move(plan), std::move(memory)));
  store->huge_page_bytes_ = store->memory_.Populate(pool);
  for (int64_t layer = 0; layer < static_cast<int64_t>(store->plan_.layouts.size()); ++layer) {
    ISOTHERM_ASSIGN_OR_RETURN(const neuron::PackReport report,
                              neuron::PackBundles(model, layer, store->plan_.layouts[layer], /*all=*/true, {},
                                                  pool, store->memory_.data() + store->plan_.offsets[layer]));
    store->down_requantization_error_ =
        std::max(store->down_requantization_error_, report.down_requantization_error);
    ISOTHERM_RETURN_IF_ERROR(advance(store->plan_.LayerBytes(layer)));
  }
  ISOTHERM_RETURN_IF_ERROR(store->memory_.Seal());
  return store;
}

std::optional<exchange::BundleFile> Store::file() const {
  if (memory_.file() < 0) return std::nullopt;
  return exchange::BundleFile{memory_.file(), memory_.bytes(), plan_.offsets};
}

neuron::BundleView Store::View(int64_t layer) const {
  return {memory_.data() + plan_.offsets[layer], &plan_.layouts[layer], nullptr, plan_.ffn};
}

}  // namespace isotherm::cpu_worker
