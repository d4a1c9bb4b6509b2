#include "tools/cli/perplexity.h"

#include <algorithm>
#include <cmath>

namespace isotherm::cli {

std::vector<std::vector<uint32_t>> PerplexityWindows(absl::Span<const uint32_t> tokens, int64_t context,
                                                     std::optional<uint32_t> bos) {
  std::vector<std::vector<uint32_t>> windows;
  const auto size = static_cast<size_t>(context);
  for (size_t begin = 0; begin + size <= tokens.size(); begin += size) {
    const absl::Span<const uint32_t> window = tokens.subspan(begin, size);
    windows.emplace_back(window.begin(), window.end());
    if (bos.has_value()) windows.back().front() = *bos;
  }
  return windows;
}

void PerplexityEstimate::AddWindow(absl::Span<const float> log_probabilities) {
  const size_t first = (log_probabilities.size() + 1) / 2;
  for (const float log_probability : log_probabilities.subspan(first)) {
    const double surprise = -static_cast<double>(log_probability);
    sum_ += surprise;
    sum_of_squares_ += surprise * surprise;
    ++tokens_;
  }
}

double PerplexityEstimate::Mean() const { return tokens_ == 0 ? 0 : sum_ / static_cast<double>(tokens_); }

double PerplexityEstimate::perplexity() const { return std::exp(Mean()); }

double PerplexityEstimate::standard_error() const {
  if (tokens_ < 2) return 0;
  const auto count = static_cast<double>(tokens_);
  const double variance = std::max(0.0, sum_of_squares_ / count - Mean() * Mean());
  return std::sqrt(variance / (count - 1)) * perplexity();
}

}  // namespace isotherm::cli
