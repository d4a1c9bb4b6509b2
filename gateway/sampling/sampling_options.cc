#include "gateway/sampling/sampling_options.h"

#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/rpc/server.h"

namespace isotherm::gateway {
namespace {

constexpr double kMaxFloat = std::numeric_limits<float>::max();

// The range a field may hold; either end may be excluded.
struct Range {
  double low, high;
  bool low_included, high_included;
  const char* description;

  // False for NaN.
  bool Contains(double value) const {
    return (low_included ? value >= low : value > low) && (high_included ? value <= high : value < high);
  }
};

absl::Status ReadField(bool present, double given, const char* field, const Range& range, double* value) {
  if (!present) return absl::OkStatus();
  if (!range.Contains(given)) {
    return rpc::InvalidField(absl::StrCat("sampling.", field),
                             absl::StrCat("must be ", range.description, ", not ", given));
  }
  *value = given;
  return absl::OkStatus();
}

constexpr Range kNotNegative = {0, kMaxFloat, true, true, "a finite number of at least 0"};
constexpr Range kPositive = {0, kMaxFloat, false, true, "a finite number above 0"};
constexpr Range kFinite = {-kMaxFloat, kMaxFloat, true, true, "a finite number"};
constexpr Range kTopP = {0, 1, false, true, "in (0, 1]"};
constexpr Range kMinP = {0, 1, true, false, "in [0, 1)"};

}  // namespace

absl::StatusOr<SamplingOptions> ParseSamplingOptions(const v1::SamplingParameters& p,
                                                     int64_t vocabulary_size) {
  SamplingOptions options;
  ISOTHERM_RETURN_IF_ERROR(
      ReadField(p.has_temperature(), p.temperature(), "temperature", kNotNegative, &options.temperature));
  ISOTHERM_RETURN_IF_ERROR(ReadField(p.has_top_p(), p.top_p(), "top_p", kTopP, &options.top_p));
  ISOTHERM_RETURN_IF_ERROR(ReadField(p.has_min_p(), p.min_p(), "min_p", kMinP, &options.min_p));
  ISOTHERM_RETURN_IF_ERROR(ReadField(p.has_repetition_penalty(), p.repetition_penalty(), "repetition_penalty",
                                     kPositive, &options.repetition_penalty));
  ISOTHERM_RETURN_IF_ERROR(ReadField(p.has_frequency_penalty(), p.frequency_penalty(), "frequency_penalty",
                                     kFinite, &options.frequency_penalty));
  ISOTHERM_RETURN_IF_ERROR(ReadField(p.has_presence_penalty(), p.presence_penalty(), "presence_penalty",
                                     kFinite, &options.presence_penalty));
  if (p.has_top_k()) options.top_k = p.top_k();
  if (p.has_repetition_window()) options.repetition_window = p.repetition_window();
  for (const auto& [token, bias] : p.logit_bias()) {
    const std::string field = absl::StrCat("sampling.logit_bias[", token, "]");
    if (token >= vocabulary_size) {
      return rpc::InvalidField(field, absl::StrCat("the vocabulary has ", vocabulary_size, " tokens"));
    }
    if (!kFinite.Contains(bias)) return rpc::InvalidField(field, "must be a finite number");
    options.logit_bias.emplace_back(token, bias);
  }
  return options;
}

}  // namespace isotherm::gateway
