#include <iostream>
#include <optional>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "tools/cli/commands.h"
#include "tools/cli/perplexity.h"
#include "tools/cli/scoring_session.h"

ABSL_FLAG(std::string, predictor, "all",
          "Predictor of the server that is started, as for gpu_worker; 'all' is exact.");
ABSL_DECLARE_FLAG(uint32_t, max_windows);

namespace isotherm::cli {
namespace {

// What the model puts in front of a text.
absl::StatusOr<std::optional<uint32_t>> BeginningOfSequence(TextScorer& scorer) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<uint32_t> empty, scorer.Tokenize("", std::nullopt));
  return empty.empty() ? std::nullopt : std::make_optional(empty.front());
}

absl::Status Measure(TextScorer& scorer, const std::vector<std::vector<uint32_t>>& windows) {
  std::cout << absl::StrFormat("perplexity over %d windows of %d tokens\n", windows.size(),
                               windows.front().size());
  PerplexityEstimate estimate;
  v1::ExecutionStatistics execution;
  for (size_t i = 0; i < windows.size(); ++i) {
    ISOTHERM_ASSIGN_OR_RETURN(const v1::ScoreResponse response, scorer.Score(windows[i]));
    estimate.AddWindow(response.log_probabilities());
    execution = response.execution();
    std::cout << absl::StrFormat("[%d]%.4f,", i + 1, estimate.perplexity()) << std::flush;
  }
  std::cout << absl::StrFormat("\nFinal estimate: PPL = %.4f +/- %.5f\n", estimate.perplexity(),
                               estimate.standard_error())
            << absl::StrFormat("%s, predictor %s, %.1f %% of the neurons computed; %d tokens scored\n",
                               ModeName(execution.mode()), execution.predictor(),
                               100 * execution.computed_share(), estimate.tokens());
  return absl::OkStatus();
}

absl::Status Run(const std::vector<std::string>& arguments) {
  if (arguments.size() != (ServerIsNamed() ? 0 : 1)) {
    return base::UsageError("one MODEL is expected, or --server and none");
  }
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t context, ScoringContext());
  ISOTHERM_ASSIGN_OR_RETURN(const std::string text, ScoringText());
  ISOTHERM_ASSIGN_OR_RETURN(const ScoringSession session,
                            OpenScoringSession({ServerIsNamed() ? "" : arguments.front(),
                                                absl::GetFlag(FLAGS_predictor), context}));
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<uint32_t> tokens, session.scorer->Tokenize(text, std::nullopt));
  if (static_cast<int64_t>(tokens.size()) < 2 * context) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", tokens.size(), " tokens; at least two windows of --ctx ", context,
                     " are needed for an estimate. Give a longer text or a smaller --ctx"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const std::optional<uint32_t> bos, BeginningOfSequence(*session.scorer));
  std::vector<std::vector<uint32_t>> windows = PerplexityWindows(tokens, context, bos);
  const uint32_t most = absl::GetFlag(FLAGS_max_windows);
  if (most > 0 && most < windows.size()) windows.resize(most);
  return Measure(*session.scorer, windows);
}

}  // namespace

Command PerplexityCommand() {
  base::Program program;
  program.name = "isotherm perplexity";
  program.summary =
      "Measures the perplexity of a text, exactly or with a predictor. As llama.cpp does, so that the "
      "numbers compare: the text is cut into windows of --ctx tokens, the first of each replaced by the "
      "beginning-of-sequence token, and the second half of each counts. Starts a server for MODEL, or uses "
      "--server.";
  program.arguments = "[MODEL]";
  program.examples =
      "isotherm perplexity model.gguf --text=wiki.test.raw\n"
      "isotherm perplexity model.gguf --text=wiki.test.raw --predictor=sketch    # what predicting costs\n"
      "isotherm perplexity --server=127.0.0.1:7070 --text=wiki.test.raw";
  program.groups = {ScoringFlags(), {"Estimate", {"predictor", "max_windows"}}};
  return {program, Run};
}

}  // namespace isotherm::cli
