#ifndef ISOTHERM_GPU_WORKER_CUDA_COLD_STREAM_H_
#define ISOTHERM_GPU_WORKER_CUDA_COLD_STREAM_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/exchange/shared_bundles.h"
#include "common/neuron/bundle.h"
#include "gpu_worker/cuda/runtime.h"

namespace isotherm::gpu_worker::cuda {

// Brings cold neurons from the CPU worker's memory, which is registered with the driver while this object
// lives, through a small staging memory on the device: while one half of it is computed with, a copy engine
// fills the other. Many token rows want nearly every cold neuron, and the bus brings all of them sooner than
// the CPU computes them. One thread.
class ColdStream {
 public:
  // Device memory that the staging takes.
  static constexpr int64_t kStagingBytes = int64_t{64} << 20;

  // FailedPrecondition where the device cannot register read-only memory. `bundles` outlives the result, as
  // does `staging`, device memory of kStagingBytes.
  static absl::StatusOr<std::unique_ptr<ColdStream>> Attach(const exchange::SharedBundles& bundles,
                                                            int64_t layers, int64_t ffn, void* staging);
  ~ColdStream();
  ColdStream(const ColdStream&) = delete;
  ColdStream& operator=(const ColdStream&) = delete;

  // The layer's bundles where they lie, neuron after neuron, for kernels that read them over the bus. Null
  // unless all are shared.
  const uint8_t* Bundles(int64_t layer, int64_t bundle_bytes) const;

  // Neurons ids[k] with bundles k < count, in device memory.
  struct Batch {
    const uint8_t* bundles = nullptr;
    const int32_t* ids = nullptr;
    int64_t count = 0;
  };
  // Calls compute(batch), which enqueues on `stream`, for one batch after another of the layer's cold
  // neurons. The hot mask [MaskWords(ffn)] is in device memory and read once for each epoch.
  absl::Status ForEachBatch(int64_t layer, const neuron::BundleLayout& layout, const uint64_t* hot_mask,
                            uint64_t epoch, cudaStream_t stream,
                            absl::FunctionRef<absl::Status(const Batch&)> compute);

 private:
  // Neighbours, which one copy brings; by their place among the layer's cold neurons.
  struct Run {
    int32_t place;
    int32_t first;  // neuron
    int32_t count;
  };
  struct Layer {
    bool known = false;
    uint64_t epoch = 0;
    std::vector<Run> runs;
    int64_t count = 0;
  };
  struct Slot {
    uint8_t* memory = nullptr;
    Event filled, free;
  };
  static constexpr int kSlots = 2;

  ColdStream(const exchange::SharedBundles& bundles, int64_t ffn) : bundles_(bundles), ffn_(ffn) {}
  absl::Status Register();
  absl::StatusOr<const Layer*> Find(int64_t layer, const uint64_t* hot_mask, uint64_t epoch);
  // Enqueues the copies of the layer's cold neurons from place `first` on into the slot.
  absl::Status Fill(const Slot& slot, int64_t layer, const uint8_t* bundles, int64_t bundle_bytes,
                    int64_t first, int64_t count);
  int32_t* Ids(int64_t layer) const { return static_cast<int32_t*>(ids_.get()) + layer * ffn_; }

  const exchange::SharedBundles& bundles_;
  const int64_t ffn_;
  std::shared_ptr<void> registration_;
  const uint8_t* on_device_ = nullptr;  // the device's address of the first bundle
  Stream stream_;
  Slot slots_[kSlots];
  int next_ = 0;
  std::vector<Layer> layers_;
  PinnedMemory ids_;  // int32 [layers, ffn]: of each layer's cold neurons
};

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_CUDA_COLD_STREAM_H_
