#include "gateway/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm::gateway {
namespace {

constexpr double kImpossible = -std::numeric_limits<double>::infinity();

absl::Status CheckLogits(absl::Span<const float> logits) {
  // Neither NaN nor infinity is below infinity. Without a way out, so that the compiler takes many at a time.
  bool sound = true;
  for (const float logit : logits) sound &= logit < std::numeric_limits<float>::infinity();
  if (sound) return absl::OkStatus();
  const auto first = std::find_if(logits.begin(), logits.end(), [](float logit) {
    return !(logit < std::numeric_limits<float>::infinity());
  });
  return absl::InternalError(
      absl::StrCat("the worker's logit of token ", first - logits.begin(), " is ", *first));
}

absl::Status NothingPossible() { return absl::InternalError("the worker's logits rule out every token"); }

}  // namespace

Sampler::Sampler(SamplingOptions options, uint64_t seed) : options_(std::move(options)), generator_(seed) {}

// Equal logits are ordered by id, so that no filter depends on how an algorithm breaks ties.
struct Sampler::MoreProbable {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  }
};

absl::StatusOr<uint32_t> Sampler::Sample(absl::Span<const float> logits, absl::Span<const uint32_t> history) {
  ISOTHERM_RETURN_IF_ERROR(CheckLogits(logits));
  if (options_.takes_largest()) {
    const auto largest = std::max_element(logits.begin(), logits.end());
    if (largest == logits.end() || *largest == kImpossible) return NothingPossible();
    return static_cast<uint32_t>(largest - logits.begin());
  }
  candidates_.resize(logits.size());
  for (size_t token = 0; token < logits.size(); ++token) {
    candidates_[token] = {logits[token], static_cast<uint32_t>(token), 0};
  }
  for (const auto& [token, bias] : options_.logit_bias) {
    if (token < candidates_.size()) candidates_[token].logit += bias;
  }
  if (options_.penalizes()) ApplyPenalties(history);

  if (candidates_.empty()) return NothingPossible();
  const Candidate most_probable = *std::min_element(candidates_.begin(), candidates_.end(), MoreProbable());
  if (most_probable.logit == kImpossible) return NothingPossible();
  if (options_.greedy()) return most_probable.token;
  KeepTopK();
  SetWeights(most_probable.logit);
  KeepTopP();
  KeepMinP();
  return Draw();
}

void Sampler::ApplyPenalties(absl::Span<const uint32_t> history) {
  const size_t window = std::min<size_t>(history.size(), options_.repetition_window);
  absl::flat_hash_map<uint32_t, int64_t> occurrences;
  for (const uint32_t token : history.last(window)) ++occurrences[token];
  for (const auto& [token, count] : occurrences) {
    if (token >= candidates_.size()) continue;
    double& logit = candidates_[token].logit;
    logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    logit -= static_cast<double>(count) * options_.frequency_penalty + options_.presence_penalty;
  }
}

void Sampler::KeepTopK() {
  const size_t k = static_cast<size_t>(options_.top_k);
  if (k == 0 || k >= candidates_.size()) return;
  std::nth_element(candidates_.begin(), candidates_.begin() + (k - 1), candidates_.end(), MoreProbable());
  candidates_.resize(k);
}

// Softmax without the division: the largest weight is 1, so nothing overflows and the sum is at least 1. Any
// temperature above 0 is safe, because the quotient's only limit is -infinity, whose weight is 0.
void Sampler::SetWeights(double largest) {
  for (Candidate& candidate : candidates_) {
    candidate.weight =
        candidate.logit == largest ? 1 : std::exp((candidate.logit - largest) / options_.temperature);
  }
}

// Sorts no more of the candidates than the nucleus holds, in pieces that grow fourfold.
void Sampler::KeepTopP() {
  if (options_.top_p >= 1) return;
  double total = 0;
  for (const Candidate& candidate : candidates_) total += candidate.weight;
  const double wanted = options_.top_p * total;

  double reached = 0;
  size_t kept = 0;
  for (size_t sorted = 0, piece = 64; sorted < candidates_.size() && reached < wanted; piece *= 4) {
    const size_t end = std::min(candidates_.size(), sorted + piece);
    std::partial_sort(candidates_.begin() + sorted, candidates_.begin() + end, candidates_.end(),
                      MoreProbable());
    for (; kept < end && reached < wanted; ++kept) reached += candidates_[kept].weight;
    sorted = end;
  }
  candidates_.resize(std::max<size_t>(kept, 1));
}

void Sampler::KeepMinP() {
  if (options_.min_p <= 0) return;
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(),
                                   [this](const Candidate& c) { return c.weight < options_.min_p; }),
                    candidates_.end());
}

uint32_t Sampler::Draw() {
  // By id: which order the filters left behind is no part of the contract.
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  double total = 0;
  for (const Candidate& candidate : candidates_) total += candidate.weight;
  // 53 random bits make a double in [0, 1). std::uniform_real_distribution differs between standard
  // libraries.
  const double uniform = static_cast<double>(generator_() >> 11) * 0x1p-53;
  double remaining = uniform * total;
  const Candidate* last_possible = nullptr;
  for (const Candidate& candidate : candidates_) {
    if (candidate.weight == 0) continue;
    last_possible = &candidate;
    remaining -= candidate.weight;
    if (remaining < 0) break;
  }
  return last_possible->token;
}

}  // namespace isotherm::gateway
