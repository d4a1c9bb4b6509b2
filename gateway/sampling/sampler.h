#ifndef ISOTHERM_GATEWAY_SAMPLING_SAMPLER_H_
#define ISOTHERM_GATEWAY_SAMPLING_SAMPLER_H_

#include <cstdint>
#include <random>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gateway/sampling/sampling_options.h"

namespace isotherm::gateway {

// Draws the tokens of one sequence. The order is fixed: logit bias, penalties, temperature, top-k, top-p,
// min-p, draw; greedy takes the largest logit after the penalties, the lowest id among equals. The tokens
// depend on options, seed, logits and history alone: the generator advances by exactly one draw for each
// token that is not greedy. Thread-compatible.
class Sampler {
 public:
  Sampler(SamplingOptions options, uint64_t seed);

  // `history` is every token before this one, prompt included. Internal, with the generator unchanged, if a
  // logit is NaN or +infinity or all are -infinity: the worker's fault, and no distribution to draw from. A
  // logit of -infinity is a token that cannot be drawn.
  absl::StatusOr<uint32_t> Sample(absl::Span<const float> logits, absl::Span<const uint32_t> history);

 private:
  struct Candidate {
    double logit;
    uint32_t token;
    double weight;  // probability times a common factor
  };
  struct MoreProbable;

  void ApplyPenalties(absl::Span<const uint32_t> history);
  // `largest`: of their logits.
  void SetWeights(double largest);
  void KeepTopK();
  void KeepTopP();
  void KeepMinP();
  uint32_t Draw();

  const SamplingOptions options_;
  std::mt19937_64 generator_;
  // The tokens still in the running. Reused from call to call, so that a draw does not allocate.
  std::vector<Candidate> candidates_;
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_SAMPLING_SAMPLER_H_
