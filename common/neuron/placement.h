#ifndef ISOTHERM_COMMON_NEURON_PLACEMENT_H_
#define ISOTHERM_COMMON_NEURON_PLACEMENT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/neuron/mask.h"

namespace isotherm::neuron {

// Which neurons of each layer are hot. A value; equal placements have equal digests in every process.
struct Placement {
  uint64_t epoch = 0;
  int64_t ffn = 0;
  std::vector<std::vector<uint64_t>> hot;  // [layers][MaskWords(ffn)]

  int64_t layers() const { return static_cast<int64_t>(hot.size()); }
  int64_t HotCount(int64_t layer) const;
  int64_t HotCount() const;
  std::vector<int32_t> HotNeurons(int64_t layer) const;  // ascending
  std::string Digest() const;                            // 16 hexadecimal digits over epoch, ffn and masks
};

Placement AllHot(int64_t layers, int64_t ffn);
Placement AllCold(int64_t layers, int64_t ffn);

// Time to compute n neurons of a layer for one token: fixed + n * per_neuron seconds.
struct TimeCurve {
  double fixed_seconds = 0;
  double seconds_per_neuron = 0;
};

struct PlanInput {
  int64_t layers = 0;
  int64_t ffn = 0;
  // counts[layer][neuron]: how often it fired in `profile_tokens` tokens; empty means no profile: every
  // neuron is taken to be computed for every token, and the lowest numbers become hot first.
  std::vector<std::vector<double>> counts;
  int64_t profile_tokens = 0;
  // Bytes of one hot neuron of each layer, and bytes free for hot neurons.
  std::vector<int64_t> neuron_bytes;
  int64_t hot_budget_bytes = 0;
  TimeCurve hot_time, cold_time;
  double exchange_seconds = 0;
  // Expected neurons computed for a token and layer over those that fire (predictor's excess), at least 1.
  double predicted_over_active = 1;
};

struct Plan {
  Placement placement;           // epoch 1
  std::vector<double> coverage;  // share of firings that are hot, by layer
  double ffn_seconds = 0;        // predicted for one token, all layers
  int64_t hot_bytes = 0;
};

// Minimises the sum over layers of max(hot time, cold time + exchange) within the budget: greedy by seconds
// saved for a byte, with a heap over the layers. A layer offers its most used cold neuron, or all that are
// left, which saves its exchange; layers stop where another hot neuron would make them slower. Deterministic:
// ties go to the lower layer and the lower neuron. InvalidArgument for counts, sizes or times that make no
// sense.
absl::StatusOr<Plan> PlanPlacement(const PlanInput& input);

// What a placement made elsewhere amounts to, whatever the budget. InvalidArgument as above and for one of
// another shape.
absl::StatusOr<Plan> AssessPlacement(const PlanInput& input, const Placement& placement);

}  // namespace isotherm::neuron

#endif  // ISOTHERM_COMMON_NEURON_PLACEMENT_H_
