#include "gpu_worker/cuda/cold_stream.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/round_up.h"
#include "common/base/status_macros.h"
#include "common/neuron/mask.h"
#include "gpu_worker/cuda/copy_batch.h"
#include "gpu_worker/kernels/launch.h"

namespace isotherm::gpu_worker::cuda {
namespace {

// Tensor cores like multiples of this; also what aligns the ids behind a slot's bundles.
constexpr int64_t kBatchMultiple = 64;

// Neurons that a slot holds with their ids.
int64_t SlotNeurons(int64_t slot_bytes, int64_t bundle_bytes) {
  const int64_t most = slot_bytes / (bundle_bytes + static_cast<int64_t>(sizeof(int32_t)));
  return most >= kBatchMultiple ? most / kBatchMultiple * kBatchMultiple : most;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ColdStream>> ColdStream::Attach(const exchange::SharedBundles& bundles,
                                                               int64_t layers, int64_t ffn, void* staging) {
  if (DeviceAttribute(cudaDevAttrHostRegisterReadOnlySupported) == 0) {
    return absl::FailedPreconditionError("the GPU cannot read host memory that it may not write");
  }
  std::unique_ptr<ColdStream> stream(new ColdStream(bundles, ffn));
  ISOTHERM_ASSIGN_OR_RETURN(stream->stream_, MakeStream());
  for (int i = 0; i < kSlots; ++i) {
    Slot& slot = stream->slots_[i];
    slot.memory = static_cast<uint8_t*>(staging) + i * (kStagingBytes / kSlots);
    ISOTHERM_ASSIGN_OR_RETURN(slot.filled, MakeEvent());
    ISOTHERM_ASSIGN_OR_RETURN(slot.free, MakeEvent());
  }
  stream->layers_.resize(layers);
  ISOTHERM_ASSIGN_OR_RETURN(stream->ids_,
                            AllocatePinned(layers * ffn * static_cast<int64_t>(sizeof(int32_t))));
  ISOTHERM_RETURN_IF_ERROR(stream->Register());
  return stream;
}

// The driver takes the address without const, and with the flag only reads there.
absl::Status ColdStream::Register() {
  ISOTHERM_ASSIGN_OR_RETURN(registration_,
                            RegisterHost(const_cast<uint8_t*>(bundles_.data()), bundles_.bytes(),
                                         /*read_only=*/true, "registering the CPU worker's neurons"));
  void* on_device = nullptr;
  ISOTHERM_RETURN_IF_ERROR(
      ToStatus(cudaHostGetDevicePointer(&on_device, const_cast<uint8_t*>(bundles_.data()), 0),
               "mapping the CPU worker's neurons"));
  on_device_ = static_cast<const uint8_t*>(on_device);
  return absl::OkStatus();
}

const uint8_t* ColdStream::Bundles(int64_t layer, int64_t bundle_bytes) const {
  const uint8_t* const bundles = bundles_.Layer(layer, ffn_ * bundle_bytes);
  return bundles == nullptr ? nullptr : on_device_ + (bundles - bundles_.data());
}

ColdStream::~ColdStream() {
  // After a pass nothing is under way but copies that a failed one left behind.
  if (stream_.get() != nullptr) static_cast<void>(cudaStreamSynchronize(stream_.get()));
}

absl::StatusOr<const ColdStream::Layer*> ColdStream::Find(int64_t layer, const uint64_t* hot_mask,
                                                          uint64_t epoch) {
  Layer& found = layers_[layer];
  if (found.known && found.epoch == epoch) return &found;
  std::vector<uint64_t> mask(neuron::MaskWords(ffn_));
  // Waits also for the copies that read the old ids.
  ISOTHERM_RETURN_IF_ERROR(ToStatus(cudaMemcpyAsync(mask.data(), hot_mask, mask.size() * sizeof(uint64_t),
                                                    cudaMemcpyDeviceToHost, stream_.get()),
                                    "reading a hot mask"));
  ISOTHERM_RETURN_IF_ERROR(ToStatus(cudaStreamSynchronize(stream_.get()), "reading a hot mask"));
  found = {.known = true, .epoch = epoch};
  int32_t* const ids = Ids(layer);
  for (int32_t j = 0; j < ffn_; ++j) {
    if (neuron::TestBit(mask.data(), j)) continue;
    const auto place = static_cast<int32_t>(found.count++);
    ids[place] = j;
    if (place > 0 && ids[place - 1] == j - 1) {
      ++found.runs.back().count;
    } else {
      found.runs.push_back({place, j, 1});
    }
  }
  return &found;
}

absl::Status ColdStream::Fill(const Slot& slot, int64_t layer, const uint8_t* bundles, int64_t bundle_bytes,
                              int64_t first, int64_t count) {
  const std::vector<Run>& runs = layers_[layer].runs;
  const int64_t end = first + count;
  // The last run that starts at or before `first`.
  auto run = std::upper_bound(runs.begin(), runs.end(), first,
                              [](int64_t place, const Run& r) { return place < r.place; }) -
             1;
  CopyBatch copies;
  for (; run != runs.end() && run->place < end; ++run) {
    const int64_t from = std::max<int64_t>(run->place, first);
    const int64_t to = std::min<int64_t>(run->place + run->count, end);
    const int64_t neuron = run->first + (from - run->place);
    copies.Add(slot.memory + (from - first) * bundle_bytes, bundles + neuron * bundle_bytes,
               (to - from) * bundle_bytes);
  }
  copies.Add(slot.memory + count * bundle_bytes, Ids(layer) + first,
             count * static_cast<int64_t>(sizeof(int32_t)));
  return ToStatus(copies.Enqueue(stream_.get()), "copying cold neurons");
}

absl::Status ColdStream::ForEachBatch(int64_t layer, const neuron::BundleLayout& layout,
                                      const uint64_t* hot_mask, uint64_t epoch, cudaStream_t stream,
                                      absl::FunctionRef<absl::Status(const Batch&)> compute) {
  const int64_t bundle_bytes = layout.bundle_bytes;
  const uint8_t* const bundles = bundles_.Layer(layer, ffn_ * bundle_bytes);
  const int64_t at_once = SlotNeurons(kStagingBytes / kSlots, bundle_bytes);
  if (bundles == nullptr || at_once == 0) {
    return absl::InternalError(absl::StrCat("layer ", layer, ": bundles of ", bundle_bytes,
                                            " bytes do not fit what the CPU worker shares, or the staging"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const Layer* const cold, Find(layer, hot_mask, epoch));
  for (int64_t first = 0; first < cold->count; first += at_once) {
    const Slot& slot = slots_[next_];
    next_ = (next_ + 1) % kSlots;
    const int64_t count = std::min(at_once, cold->count - first);
    ISOTHERM_RETURN_IF_ERROR(
        ToStatus(cudaStreamWaitEvent(stream_.get(), slot.free.get(), 0), "waiting for a staging slot"));
    ISOTHERM_RETURN_IF_ERROR(Fill(slot, layer, bundles, bundle_bytes, first, count));
    ISOTHERM_RETURN_IF_ERROR(
        ToStatus(cudaEventRecord(slot.filled.get(), stream_.get()), "filling a staging slot"));
    ISOTHERM_RETURN_IF_ERROR(
        ToStatus(cudaStreamWaitEvent(stream, slot.filled.get(), 0), "waiting for cold neurons"));
    ISOTHERM_RETURN_IF_ERROR(
        compute({slot.memory, reinterpret_cast<const int32_t*>(slot.memory + count * bundle_bytes), count}));
    ISOTHERM_RETURN_IF_ERROR(ToStatus(cudaEventRecord(slot.free.get(), stream), "leaving a staging slot"));
  }
  return absl::OkStatus();
}

}  // namespace isotherm::gpu_worker::cuda
