#include "gpu_worker/cold/shares.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/neuron/mask.h"

namespace isotherm::gpu_worker {
namespace {

// 2^32 over the golden ratio: multiples of it fall evenly into any interval (Knuth, The Art of Computer
// Programming, section 6.4).
constexpr uint32_t kGolden = 2'654'435'769;

}  // namespace

std::vector<double> SharesOf(const std::vector<double>& weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  const auto count = static_cast<double>(weights.size());
  std::vector<double> shares;
  for (const double weight : weights)
    shares.push_back(std::max(sum > 0 ? weight / sum : 1 / count, kLeastShare));
  // What the raised ones got is taken from those that can give.
  const double excess = std::accumulate(shares.begin(), shares.end(), 0.0) - 1;
  const double givable = excess + 1 - count * kLeastShare;
  if (excess <= 0 || givable <= 0) return shares;
  for (double& share : shares) share -= excess * (share - kLeastShare) / givable;
  return shares;
}

std::vector<std::vector<uint64_t>> DivideNeurons(int64_t ffn, const std::vector<double>& shares) {
  std::vector<std::vector<uint64_t>> owned(shares.size(), std::vector<uint64_t>(neuron::MaskWords(ffn)));
  std::vector<double> ends(shares.size());
  std::partial_sum(shares.begin(), shares.end(), ends.begin());
  for (int64_t neuron = 0; neuron < ffn; ++neuron) {
    const double place = std::ldexp(static_cast<uint32_t>(neuron) * kGolden, -32) * ends.back();
    const auto owner = std::upper_bound(ends.begin(), ends.end() - 1, place) - ends.begin();
    neuron::SetBit(owned[owner].data(), neuron);
  }
  return owned;
}

neuron::Placement RestrictTo(const neuron::Placement& placement, const std::vector<uint64_t>& owned) {
  std::vector<uint64_t> all(owned.size());
  neuron::SetAll(all.data(), placement.ffn);
  neuron::Placement restricted = placement;
  for (std::vector<uint64_t>& hot : restricted.hot) {
    for (size_t w = 0; w < hot.size(); ++w) hot[w] |= all[w] & ~owned[w];
  }
  return restricted;
}

std::vector<double> Rebalance(const std::vector<double>& shares, const std::vector<absl::Duration>& latencies,
                              double tolerated) {
  const auto [fastest, slowest] = std::minmax_element(latencies.begin(), latencies.end());
  if (*fastest <= absl::ZeroDuration() || *slowest < *fastest * tolerated) return shares;
  std::vector<double> weights;
  for (size_t i = 0; i < shares.size(); ++i) {
    weights.push_back(shares[i] * std::sqrt(absl::FDivDuration(*fastest, latencies[i])));
  }
  return SharesOf(weights);
}

}  // namespace isotherm::gpu_worker
