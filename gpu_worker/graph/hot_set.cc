#include "gpu_worker/graph/hot_set.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/base/status_macros.h"

namespace isotherm::gpu_worker {

absl::StatusOr<std::unique_ptr<HotSet>> HotSet::Create(const neuron::Placement& placement,
                                                       const std::vector<DeviceHotLayers>& devices,
                                                       int64_t staging_bytes) {
  std::unique_ptr<HotSet> hot_set(new HotSet());
  for (const auto& [device, layers] : devices) {
    int64_t bytes = staging_bytes;
    for (const HotLayer& layer : layers) {
      bytes = std::max(bytes, layer.layout.bundle_bytes + static_cast<int64_t>(sizeof(HotSwap)));
    }
    Part& part = hot_set->parts_.emplace_back();
    part.device = device;
    part.layers.begin = static_cast<int64_t>(hot_set->layers_.size());
    part.layers.end = part.layers.begin + static_cast<int64_t>(layers.size());
    ISOTHERM_ASSIGN_OR_RETURN(part.staging, device->Allocate(bytes, MemoryPurpose::kWorkspace));
    hot_set->layers_.insert(hot_set->layers_.end(), layers.begin(), layers.end());
  }
  for (int64_t l = 0; l < placement.layers(); ++l) {
    std::vector<int32_t>& slots = hot_set->slots_.emplace_back(placement.ffn);
    int32_t slot = 0;
    for (const int32_t neuron : placement.HotNeurons(l)) slots[neuron] = slot++;
  }
  return hot_set;
}

size_t HotSet::PartOf(const neuron::Move& move) const {
  size_t part = 0;
  while (move.layer >= parts_[part].layers.end) ++part;
  return part;
}

int64_t HotSet::Bytes(absl::Span<const neuron::Move> moves) const {
  int64_t bytes = 0;
  for (const neuron::Move& move : moves) bytes += layers_[move.layer].layout.bundle_bytes;
  return bytes;
}

int64_t HotSet::Fitting(absl::Span<const neuron::Move> moves) const {
  std::vector<int64_t> room;
  for (const Part& part : parts_) room.push_back(part.staging.bytes());
  int64_t fitting = 0;
  for (const neuron::Move& move : moves) {
    int64_t& left = room[PartOf(move)];
    left -= layers_[move.layer].layout.bundle_bytes + static_cast<int64_t>(sizeof(HotSwap));
    if (left < 0) break;
    ++fitting;
  }
  return fitting;
}

HotSwap HotSet::MakeSwap(const neuron::Move& move, const uint8_t* bundle) const {
  const HotLayer& layer = layers_[move.layer];
  const int64_t slot = slots_[move.layer][move.demoted];
  return {.bundle = bundle,
          .slot = layer.bundles + slot * layer.layout.bundle_bytes,
          .bundle_bytes = layer.layout.bundle_bytes,
          .neuron_id = layer.neuron_ids + slot,
          .hot_mask = layer.hot_mask,
          .demoted = move.demoted,
          .promoted = move.promoted};
}

absl::Status HotSet::Stage(absl::Span<const neuron::Move> moves, ReadBundles read) {
  Forget();
  for (const neuron::Move& move : moves) parts_[PartOf(move)].staged.push_back(move);
  absl::Status status;
  for (const Part& part : parts_) {
    if (status.ok() && !part.staged.empty()) status = StageOn(part, read);
  }
  if (!status.ok()) Forget();
  return status;
}

void HotSet::Forget() {
  for (Part& part : parts_) part.staged.clear();
}

absl::Status HotSet::StageOn(const Part& part, ReadBundles read) const {
  const std::vector<neuron::Move>& moves = part.staged;
  const int64_t bundles = Bytes(moves);
  const int64_t bytes = bundles + static_cast<int64_t>(moves.size() * sizeof(HotSwap));
  absl::Status status;
  ISOTHERM_RETURN_IF_ERROR(part.device->WriteBeside(part.staging, bytes, [&](uint8_t* out) {
    int64_t offset = 0;
    uint8_t* swaps = out + bundles;
    for (auto first = moves.begin(); first != moves.end() && status.ok();) {
      const auto last =
          std::find_if(first, moves.end(), [&](const neuron::Move& m) { return m.layer != first->layer; });
      std::vector<int32_t> promoted;
      const int64_t start = offset;
      for (auto move = first; move != last; ++move) {
        const HotSwap swap = MakeSwap(*move, part.staging.data() + offset);
        std::memcpy(swaps, &swap, sizeof(swap));
        swaps += sizeof(swap);
        promoted.push_back(move->promoted);
        offset += swap.bundle_bytes;
      }
      status = read(first->layer, promoted, out + start);
      first = last;
    }
  }));
  return status;
}

absl::Status HotSet::Commit() {
  for (Part& part : parts_) {
    if (part.staged.empty()) continue;
    const auto* const swaps = reinterpret_cast<const HotSwap*>(part.staging.data() + Bytes(part.staged));
    ISOTHERM_RETURN_IF_ERROR(part.device->SwapHot(swaps, static_cast<int64_t>(part.staged.size())));
    for (const neuron::Move& move : std::exchange(part.staged, {})) {
      slots_[move.layer][move.promoted] = slots_[move.layer][move.demoted];
    }
  }
  return absl::OkStatus();
}

}  // namespace isotherm::gpu_worker
