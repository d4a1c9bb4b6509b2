#ifndef ISOTHERM_GPU_WORKER_GRAPH_HOT_SET_H_
#define ISOTHERM_GPU_WORKER_GRAPH_HOT_SET_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/neuron/adaptation.h"
#include "common/neuron/placement.h"
#include "gpu_worker/device/device.h"
#include "gpu_worker/device/layer_range.h"

namespace isotherm::gpu_worker {

// The hot neurons of layers in a row and the device that has them, which outlives whoever uses them.
struct DeviceHotLayers {
  Device* device = nullptr;
  std::vector<HotLayer> layers;
};

// The hot neurons on their devices while they change places with cold ones: first the promoted neurons'
// bundles are brought into staging memory on the device beside its passes, then, between two passes, they
// overwrite the demoted ones'. Which neuron has which slot, and so the order of sums, depends on the moves
// made so far.
class HotSet {
 public:
  // Writes the bundles of these neurons of a layer one after another to `out`.
  using ReadBundles =
      absl::FunctionRef<absl::Status(int64_t layer, absl::Span<const int32_t> neurons, uint8_t* out)>;

  // The devices hold the placement's layers one after another, and its hot neurons in ascending order, as
  // loaded. `staging_bytes` on each of them; ResourceExhausted when there is no memory for that.
  static absl::StatusOr<std::unique_ptr<HotSet>> Create(const neuron::Placement& placement,
                                                        const std::vector<DeviceHotLayers>& devices,
                                                        int64_t staging_bytes);

  // How many moves from the front fit the staging memory together; at least one if there is one, as Create
  // makes room for the largest.
  int64_t Fitting(absl::Span<const neuron::Move> moves) const;
  int64_t Bytes(absl::Span<const neuron::Move> moves) const;

  // Brings the promoted neurons of moves that fit to their devices, in place of those staged before. Each
  // demotes a hot neuron and promotes a cold one, and names it once. On another thread than the devices'
  // driver; the error of `read` or of a device, after which nothing is staged.
  absl::Status Stage(absl::Span<const neuron::Move> moves, ReadBundles read);

  // Makes the moves staged; on the driver's thread, between passes. After an error a device is lost.
  absl::Status Commit();

 private:
  // What lies on one device.
  struct Part {
    Device* device = nullptr;
    LayerRange layers;
    Buffer staging;  // bundles, then an array of HotSwap
    std::vector<neuron::Move> staged;
  };

  HotSet() = default;
  // The index of the device that has the move's layer.
  size_t PartOf(const neuron::Move& move) const;
  HotSwap MakeSwap(const neuron::Move& move, const uint8_t* bundle) const;
  // What was staged.
  void Forget();
  absl::Status StageOn(const Part& part, ReadBundles read) const;

  std::vector<HotLayer> layers_;
  std::vector<Part> parts_;
  std::vector<std::vector<int32_t>> slots_;  // [layers][ffn]; of cold neurons without meaning
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_GRAPH_HOT_SET_H_
