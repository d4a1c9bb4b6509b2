#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <queue>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/neuron/placement.h"

namespace isotherm::neuron {
namespace {

// One layer while neurons move from cold to hot, in descending order of use and then ascending number.
class LayerPlan {
 public:
  LayerPlan(const PlanInput& input, int64_t layer) : input_(input), bytes_(input.neuron_bytes[layer]) {
    order_.resize(input.ffn);
    std::iota(order_.begin(), order_.end(), 0);
    work_.assign(input.ffn, 1.0);
    if (!input.counts.empty()) {
      const std::vector<double>& counts = input.counts[layer];
      std::stable_sort(order_.begin(), order_.end(),
                       [&](int32_t a, int32_t b) { return counts[a] > counts[b]; });
      // Half a firing more than was seen: a neuron the profile never saw fire still earns budget that nothing
      // else wants.
      for (int64_t j = 0; j < input.ffn; ++j) {
        work_[j] =
            std::min(1.0, (counts[j] + 0.5) / (input.profile_tokens + 0.5) * input.predicted_over_active);
      }
    }
    for (double work : work_) cold_work_ += work;
  }

  int64_t hot_count() const { return hot_count_; }
  int64_t cold_count() const { return input_.ffn - hot_count_; }
  int64_t bytes() const { return bytes_; }
  int64_t remaining_bytes() const { return bytes_ * cold_count(); }
  const std::vector<int32_t>& order() const { return order_; }

  double Seconds() const { return Seconds(hot_count_, hot_work_, cold_work_); }
  // Seconds saved by the next neuron, and by all that remain; both may be negative.
  double NextGain() const {
    if (cold_count() == 0) return 0;
    const double work = work_[order_[hot_count_]];
    return Seconds() - Seconds(hot_count_ + 1, hot_work_ + work, cold_work_ - work);
  }
  double CompletionGain() const { return Seconds() - Seconds(input_.ffn, hot_work_ + cold_work_, 0); }

  void MoveNext() {
    const double work = work_[order_[hot_count_]];
    ++hot_count_;
    hot_work_ += work;
    cold_work_ -= work;
  }
  void MoveAll() {
    while (cold_count() > 0) MoveNext();
  }
  // From cold to hot, whatever their use.
  void MoveThese(const std::vector<uint64_t>& mask) {
    const auto hot = [&](int32_t neuron) { return TestBit(mask.data(), neuron); };
    std::stable_partition(order_.begin(), order_.end(), hot);
    while (cold_count() > 0 && hot(order_[hot_count_])) MoveNext();
  }

 private:
  double Seconds(int64_t hot_count, double hot_work, double cold_work) const {
    const TimeCurve& hot = input_.hot_time;
    const TimeCurve& cold = input_.cold_time;
    const double hot_seconds = hot_count == 0 ? 0 : hot.fixed_seconds + hot_work * hot.seconds_per_neuron;
    if (hot_count == input_.ffn) return hot_seconds;
    return std::max(hot_seconds,
                    input_.exchange_seconds + cold.fixed_seconds + cold_work * cold.seconds_per_neuron);
  }

  const PlanInput& input_;
  int64_t bytes_;
  std::vector<int32_t> order_;
  std::vector<double> work_;  // share of tokens for which the neuron is computed, by file number
  int64_t hot_count_ = 0;
  double hot_work_ = 0;
  double cold_work_ = 0;
};

absl::Status CheckCurve(const char* name, const TimeCurve& curve) {
  if (!(curve.fixed_seconds >= 0) || !(curve.seconds_per_neuron >= 0)) {
    return absl::InvalidArgumentError(absl::StrCat("placement: ", name, " time is negative or not a number"));
  }
  return absl::OkStatus();
}

absl::Status CheckCounts(const PlanInput& input) {
  if (input.counts.empty()) return absl::OkStatus();
  if (static_cast<int64_t>(input.counts.size()) != input.layers) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "placement: firing counts of %d layers for a model of %d", input.counts.size(), input.layers));
  }
  if (input.profile_tokens <= 0) {
    return absl::InvalidArgumentError("placement: firing counts without the number of profiled tokens");
  }
  for (int64_t layer = 0; layer < input.layers; ++layer) {
    const std::vector<double>& counts = input.counts[layer];
    if (static_cast<int64_t>(counts.size()) != input.ffn) {
      return absl::InvalidArgumentError(absl::StrFormat("placement: layer %d has %d firing counts, not %d",
                                                        layer, counts.size(), input.ffn));
    }
    if (!std::all_of(counts.begin(), counts.end(), [](double c) { return std::isfinite(c) && c >= 0; })) {
      return absl::InvalidArgumentError(
          absl::StrFormat("placement: layer %d has a firing count that is negative or not a number", layer));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckInput(const PlanInput& input) {
  if (input.layers <= 0 || input.ffn <= 0 || input.ffn > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("placement: %d layers of %d neurons", input.layers, input.ffn));
  }
  if (static_cast<int64_t>(input.neuron_bytes.size()) != input.layers ||
      !std::all_of(input.neuron_bytes.begin(), input.neuron_bytes.end(), [](int64_t b) { return b > 0; })) {
    return absl::InvalidArgumentError("placement: every layer needs a positive size of a neuron");
  }
  if (input.hot_budget_bytes < 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "placement: the budget for hot neurons is negative (%d bytes)", input.hot_budget_bytes));
  }
  if (!(input.exchange_seconds >= 0) || !(input.predicted_over_active >= 1)) {
    return absl::InvalidArgumentError(
        "placement: exchange time must not be negative, computed over active neurons not below 1");
  }
  ISOTHERM_RETURN_IF_ERROR(CheckCurve("hot", input.hot_time));
  ISOTHERM_RETURN_IF_ERROR(CheckCurve("cold", input.cold_time));
  return CheckCounts(input);
}

struct Move {
  double gain_per_byte = 0;
  int64_t layer = 0;
  bool whole_layer = false;
  // Best first; equal gains go to the lower layer.
  bool operator<(const Move& other) const {
    if (gain_per_byte != other.gain_per_byte) return gain_per_byte < other.gain_per_byte;
    return layer > other.layer;
  }
};

// The better of the layer's two moves that the budget allows; a gain of 0 means neither.
Move BestMove(const LayerPlan& plan, int64_t layer, int64_t budget) {
  Move best{0, layer, false};
  if (plan.bytes() <= budget) best.gain_per_byte = plan.NextGain() / plan.bytes();
  if (plan.cold_count() > 0 && plan.remaining_bytes() <= budget) {
    const double completion = plan.CompletionGain() / plan.remaining_bytes();
    if (completion > best.gain_per_byte) best = Move{completion, layer, true};
  }
  return best;
}

// Spends at most `budget` bytes.
void Spend(int64_t budget, std::vector<LayerPlan>& plans) {
  std::priority_queue<Move> queue;
  const auto push = [&](int64_t layer) {
    const Move move = BestMove(plans[layer], layer, budget);
    if (move.gain_per_byte > 0) queue.push(move);
  };
  for (int64_t layer = 0; layer < static_cast<int64_t>(plans.size()); ++layer) push(layer);
  while (!queue.empty()) {
    const Move move = queue.top();
    queue.pop();
    LayerPlan& plan = plans[move.layer];
    const int64_t cost = move.whole_layer ? plan.remaining_bytes() : plan.bytes();
    // Queued when there was more budget: the layer may still have a cheaper move, which push() finds.
    if (cost <= budget) {
      budget -= cost;
      move.whole_layer ? plan.MoveAll() : plan.MoveNext();
    }
    push(move.layer);
  }
}

double Coverage(const PlanInput& input, const LayerPlan& plan, int64_t layer) {
  if (!input.counts.empty()) {
    const std::vector<double>& counts = input.counts[layer];
    const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
    double hot = 0;
    for (int64_t i = 0; i < plan.hot_count(); ++i) hot += counts[plan.order()[i]];
    if (total > 0) return hot / total;
  }
  return static_cast<double>(plan.hot_count()) / input.ffn;
}

// Every neuron cold.
std::vector<LayerPlan> StartPlans(const PlanInput& input) {
  std::vector<LayerPlan> plans;
  plans.reserve(input.layers);
  for (int64_t layer = 0; layer < input.layers; ++layer) plans.emplace_back(input, layer);
  return plans;
}

Plan Finish(const PlanInput& input, const std::vector<LayerPlan>& plans) {
  Plan plan;
  plan.placement = AllCold(input.layers, input.ffn);
  for (int64_t layer = 0; layer < input.layers; ++layer) {
    const LayerPlan& chosen = plans[layer];
    plan.hot_bytes += chosen.bytes() * chosen.hot_count();
    for (int64_t i = 0; i < chosen.hot_count(); ++i) {
      SetBit(plan.placement.hot[layer].data(), chosen.order()[i]);
    }
    plan.coverage.push_back(Coverage(input, chosen, layer));
    plan.ffn_seconds += chosen.Seconds();
  }
  return plan;
}

}  // namespace

absl::StatusOr<Plan> PlanPlacement(const PlanInput& input) {
  ISOTHERM_RETURN_IF_ERROR(CheckInput(input));
  std::vector<LayerPlan> plans = StartPlans(input);
  Spend(input.hot_budget_bytes, plans);
  return Finish(input, plans);
}

absl::StatusOr<Plan> AssessPlacement(const PlanInput& input, const Placement& placement) {
  ISOTHERM_RETURN_IF_ERROR(CheckInput(input));
  if (placement.layers() != input.layers || placement.ffn != input.ffn) {
    return absl::InvalidArgumentError(
        absl::StrFormat("placement: it is of %d layers of %d neurons, the model has %d of %d",
                        placement.layers(), placement.ffn, input.layers, input.ffn));
  }
  std::vector<LayerPlan> plans = StartPlans(input);
  for (int64_t layer = 0; layer < input.layers; ++layer) plans[layer].MoveThese(placement.hot[layer]);
  return Finish(input, plans);
}

}  // namespace isotherm::neuron
