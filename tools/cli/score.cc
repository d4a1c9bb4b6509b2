#include <cmath>
#include <iostream>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/observe/log.h"
#include "tools/cli/commands.h"
#include "tools/cli/text_scorer.h"

ABSL_FLAG(bool, each, false, "Print the log-probability of every token.");
ABSL_FLAG(uint32_t, window, 0,
          "Score a long text in windows of this many tokens, each beginning with the beginning-of-sequence "
          "token; 0: the model's context length.");
ABSL_FLAG(uint32_t, max_windows, 0, "Stop after this many windows; 0 for all.");

namespace isotherm::cli {
namespace {

struct Total {
  double log_probability = 0;  // natural log
  int64_t tokens = 0;
};

absl::StatusOr<uint32_t> WindowLength(TextScorer& scorer) {
  if (uint32_t window = absl::GetFlag(FLAGS_window); window > 0) return window;
  ISOTHERM_ASSIGN_OR_RETURN(const v1::Model model, scorer.Model());
  return model.context_length();
}

absl::Status ScoreWindow(TextScorer& scorer, const std::vector<uint32_t>& window, Total& total) {
  ISOTHERM_ASSIGN_OR_RETURN(const v1::ScoreResponse response, scorer.Score(window));
  for (int i = 0; i < response.log_probabilities_size(); ++i) {
    total.log_probability += response.log_probabilities(i);
    ++total.tokens;
    if (absl::GetFlag(FLAGS_each)) {
      std::cout << absl::StrFormat("%d\t%.6f\n", response.tokens(i + 1), response.log_probabilities(i));
    }
  }
  return absl::OkStatus();
}

absl::Status Run(const std::vector<std::string>& arguments) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string text, ReadText(arguments));
  ISOTHERM_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, ConnectToServer());
  TextScorer scorer(channel);
  ISOTHERM_ASSIGN_OR_RETURN(const uint32_t window, WindowLength(scorer));
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<uint32_t> tokens, scorer.Tokenize(text, /*add_bos=*/false));
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<uint32_t> bos, scorer.Tokenize("", /*add_bos=*/true));
  if (window <= bos.size() + 1) {
    return base::UsageError(absl::StrCat("--window=", window, " leaves nothing to score"));
  }
  std::vector<std::vector<uint32_t>> windows = CutIntoWindows(tokens, bos, window);
  if (const uint32_t most = absl::GetFlag(FLAGS_max_windows); most > 0 && most < windows.size()) {
    windows.resize(most);
  }
  observe::Progress progress("scoring", static_cast<int64_t>(windows.size()), "windows");
  Total total;
  for (const std::vector<uint32_t>& ids : windows) {
    ISOTHERM_RETURN_IF_ERROR(ScoreWindow(scorer, ids, total));
    progress.Advance(1);
  }
  progress.Finish();
  if (total.tokens == 0) return base::UsageError("the text has no token to score");
  const double nats = -total.log_probability / static_cast<double>(total.tokens);
  std::cout << absl::StrFormat(
      "tokens %d, windows %d of %d, log-probability %.4f, nats/token %.5f, perplexity %.4f\n", total.tokens,
      windows.size(), window, total.log_probability, nats, std::exp(nats));
  return absl::OkStatus();
}

}  // namespace

Command ScoreCommand() {
  base::Program program;
  program.name = "isotherm score";
  program.summary =
      "Log-probabilities of a text under the served model, and its perplexity. The text is the argument, or "
      "standard input; long texts are cut into windows that are scored one by one.";
  program.arguments = "[TEXT]";
  program.examples =
      "isotherm score \"Once upon a time there was a king.\" --each\n"
      "isotherm score --window=512 < valid.txt";
  program.groups = {ServerFlags(), {"Scoring", {"window", "max_windows", "each"}}};
  return {program, Run};
}

}  // namespace isotherm::cli
