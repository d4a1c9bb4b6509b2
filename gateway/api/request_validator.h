#ifndef ISOTHERM_GATEWAY_API_REQUEST_VALIDATOR_H_
#define ISOTHERM_GATEWAY_API_REQUEST_VALIDATOR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "gateway/engine/generate_sequence.h"
#include "gateway/text/tokenizer.h"
#include "isotherm/v1/inference.pb.h"

namespace isotherm::gateway {

// From the wire to what the engine takes. Every error is InvalidArgument and names the field, or NotFound for
// the model. Thread-safe.
class RequestValidator {
 public:
  // `tokenizer` outlives this.
  RequestValidator(std::string model_name, const text::Tokenizer* tokenizer);

  // `context`: tokens a sequence may hold, 0 if that is not known yet. Longer texts are refused before they
  // are encoded.
  absl::StatusOr<GenerateTask> Generate(const v1::GenerateRequest& request, int64_t context) const;
  absl::StatusOr<std::vector<uint32_t>> Score(const v1::ScoreRequest& request, int64_t context) const;
  absl::StatusOr<std::vector<uint32_t>> Tokenize(const v1::TokenizeRequest& request) const;
  absl::StatusOr<std::string> Detokenize(const v1::DetokenizeRequest& request) const;

  absl::Status CheckModel(const std::string& name) const;

 private:
  absl::StatusOr<std::vector<uint32_t>> Encode(const std::string& text, const text::EncodeOptions& options,
                                               int64_t context) const;
  absl::StatusOr<std::vector<uint32_t>> CheckIds(const v1::TokenIds& tokens) const;

  const std::string model_name_;
  const text::Tokenizer* const tokenizer_;
  int64_t longest_token_ = 1;  // bytes
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_API_REQUEST_VALIDATOR_H_
