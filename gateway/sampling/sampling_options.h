#ifndef ISOTHERM_GATEWAY_SAMPLING_SAMPLING_OPTIONS_H_
#define ISOTHERM_GATEWAY_SAMPLING_SAMPLING_OPTIONS_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "isotherm/v1/inference.pb.h"

namespace isotherm::gateway {

// How the next token is drawn from the logits. The defaults are the public API's for unset fields.
struct SamplingOptions {
  double temperature = 0.8;  // 0: greedy
  int64_t top_k = 40;        // 0: all
  double top_p = 0.95;
  double min_p = 0.05;
  double repetition_penalty = 1;
  double frequency_penalty = 0;
  double presence_penalty = 0;
  int64_t repetition_window = 64;
  std::vector<std::pair<uint32_t, double>> logit_bias;  // token ids below the vocabulary's size, each once

  bool greedy() const { return temperature == 0; }
  bool penalizes() const {
    return repetition_penalty != 1 || frequency_penalty != 0 || presence_penalty != 0;
  }
  // Of the logits as they are, the first among equals.
  bool takes_largest() const { return greedy() && logit_bias.empty() && !penalizes(); }
};

// The only way from the wire to SamplingOptions: InvalidArgument names the field and what it may hold.
absl::StatusOr<SamplingOptions> ParseSamplingOptions(const v1::SamplingParameters& parameters,
                                                     int64_t vocabulary_size);

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_SAMPLING_SAMPLING_OPTIONS_H_
