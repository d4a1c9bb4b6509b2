#ifndef ISOTHERM_TOOLS_CLI_TEXT_SCORER_H_
#define ISOTHERM_TOOLS_CLI_TEXT_SCORER_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "isotherm/v1/inference.grpc.pb.h"
#include "isotherm/v1/model.grpc.pb.h"

namespace isotherm::cli {

// Texts under the model of a gateway. Thread-safe; each call waits for its answer.
class TextScorer {
 public:
  explicit TextScorer(const std::shared_ptr<grpc::Channel>& channel);

  absl::StatusOr<v1::Model> Model();
  // `add_bos` unset: as the model's metadata says.
  absl::StatusOr<std::vector<uint32_t>> Tokenize(const std::string& text, std::optional<bool> add_bos);
  absl::StatusOr<v1::ScoreResponse> Score(absl::Span<const uint32_t> tokens);
  absl::StatusOr<v1::GetFiringCountsResponse> FiringCounts();

 private:
  const std::unique_ptr<v1::InferenceService::Stub> inference_;
  const std::unique_ptr<v1::ModelService::Stub> models_;
};

// A long text in windows of at most `window` tokens, each beginning with `bos` and all tokens in exactly one;
// `bos` is shorter than a window. A last window without a token to score is left out.
std::vector<std::vector<uint32_t>> CutIntoWindows(absl::Span<const uint32_t> tokens,
                                                  absl::Span<const uint32_t> bos, size_t window);

// The text of a file without its last newline, as llama.cpp takes it.
absl::StatusOr<std::string> ReadTextFile(const std::string& path);

// "exact" or "predicted".
const char* ModeName(v1::ExecutionMode mode);

}  // namespace isotherm::cli

#endif  // ISOTHERM_TOOLS_CLI_TEXT_SCORER_H_
