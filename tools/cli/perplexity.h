#ifndef ISOTHERM_TOOLS_CLI_PERPLEXITY_H_
#define ISOTHERM_TOOLS_CLI_PERPLEXITY_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"

// Perplexity as llama.cpp measures it (its tool `perplexity`), so that the figures may stand side by side.
namespace isotherm::cli {

// Windows of `context` tokens, one after another; a remainder is dropped. The first token of each is replaced
// by `bos` where the model begins texts with one.
std::vector<std::vector<uint32_t>> PerplexityWindows(absl::Span<const uint32_t> tokens, int64_t context,
                                                     std::optional<uint32_t> bos);

// Mean and spread over the second half of each window: what comes before has too little context to tell
// anything.
class PerplexityEstimate {
 public:
  // Natural-log probabilities of a window's tokens, the first left out: one fewer than the window is long.
  void AddWindow(absl::Span<const float> log_probabilities);

  int64_t tokens() const { return tokens_; }
  // exp of the mean negative log-probability; 1 before the first token.
  double perplexity() const;
  // Its standard error, to first order: perplexity times that of the mean.
  double standard_error() const;

 private:
  double Mean() const;

  int64_t tokens_ = 0;
  double sum_ = 0, sum_of_squares_ = 0;  // of negative log-probabilities
};

}  // namespace isotherm::cli

#endif  // ISOTHERM_TOOLS_CLI_PERPLEXITY_H_
