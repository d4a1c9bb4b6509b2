#include <algorithm>
#include <iostream>
#include <utility>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/model/profile.h"
#include "common/observe/log.h"
#include "tools/cli/commands.h"
#include "tools/cli/coverage.h"
#include "tools/cli/scoring_session.h"

ABSL_FLAG(std::string, out, "",
          "Where the profile is written. Empty: beside the model, as MODEL.profile.gguf.");
ABSL_DECLARE_FLAG(std::string, text);

namespace isotherm::cli {
namespace {

// Runs the text for the sake of the neurons that fire. In predicted mode only those computed can be seen.
absl::StatusOr<v1::ExecutionMode> RunText(TextScorer& scorer, int64_t context) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string text, ScoringText());
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<uint32_t> tokens, scorer.Tokenize(text, /*add_bos=*/false));
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<uint32_t> bos, scorer.Tokenize("", std::nullopt));
  const auto window = static_cast<size_t>(context);
  if (window <= bos.size()) return base::UsageError("--ctx leaves no room for a token");
  const std::vector<std::vector<uint32_t>> windows = CutIntoWindows(tokens, bos, window);
  if (windows.empty()) return absl::InvalidArgumentError("the text of --text has no token to run");
  observe::Progress progress("profiling", static_cast<int64_t>(tokens.size()), "tokens");
  v1::ExecutionMode mode = v1::EXECUTION_MODE_UNSPECIFIED;
  for (const std::vector<uint32_t>& ids : windows) {
    ISOTHERM_ASSIGN_OR_RETURN(const v1::ScoreResponse response, scorer.Score(ids));
    mode = response.execution().mode();
    progress.Advance(static_cast<int64_t>(ids.size() - bos.size()));
  }
  progress.Finish();
  return mode;
}

// What fired between the two answers.
absl::StatusOr<model::Profile> Difference(const v1::GetFiringCountsResponse& before,
                                          const v1::GetFiringCountsResponse& after) {
  model::Profile profile;
  profile.tokens = static_cast<int64_t>(after.tokens()) - static_cast<int64_t>(before.tokens());
  bool grew = profile.tokens >= 0 && before.layers_size() <= after.layers_size();
  for (int layer = 0; layer < after.layers_size(); ++layer) {
    const auto& now = after.layers(layer).neurons();
    std::vector<double> counts(now.begin(), now.end());
    if (layer < before.layers_size()) {
      const auto& then = before.layers(layer).neurons();
      for (int j = 0; j < std::min(then.size(), now.size()); ++j) {
        grew = grew && now[j] >= then[j];
        counts[j] -= static_cast<double>(then[j]);
      }
    }
    profile.counts.push_back(std::move(counts));
  }
  if (!grew) return absl::AbortedError("the server's worker was restarted meanwhile; run the command again");
  return profile;
}

// The firings of --text, or without it all that a live server has counted since it started.
absl::StatusOr<model::Profile> Collect(TextScorer& scorer, const v1::Model& served, int64_t context) {
  v1::GetFiringCountsResponse before;
  std::string source = absl::StrCat("a server with predictor ", served.predictor());
  if (!absl::GetFlag(FLAGS_text).empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(before, scorer.FiringCounts());
    ISOTHERM_ASSIGN_OR_RETURN(const v1::ExecutionMode mode, RunText(scorer, context));
    source = absl::StrCat(ScoringTextName(), " (", ModeName(mode), ")");
  }
  ISOTHERM_ASSIGN_OR_RETURN(const v1::GetFiringCountsResponse after, scorer.FiringCounts());
  ISOTHERM_ASSIGN_OR_RETURN(model::Profile profile, Difference(before, after));
  if (profile.tokens == 0) {
    return absl::FailedPreconditionError("the server has computed no token yet: there is nothing to write");
  }
  profile.source = std::move(source);
  return profile;
}

absl::Status CheckServes(const v1::Model& served, const model::Model& model) {
  if (served.digest() == model.digest()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("the server has '", served.name(), "' with digest ",
                                                    served.digest(), ", '", model.DisplayName(), "' has ",
                                                    model.digest(), "; name the file that it serves"));
}

void Report(const model::Profile& profile, const std::string& path) {
  const std::vector<double> covered = CoverageCurve(profile.counts);
  std::cout << absl::StrFormat(
      "%d tokens of %s; the most used 10, 20 and 30 %% of the neurons make %.1f, %.1f and %.1f %% of the "
      "firings\nwritten to %s\n",
      profile.tokens, profile.source, 100 * covered[10], 100 * covered[20], 100 * covered[30], path);
}

absl::Status Run(const std::vector<std::string>& arguments) {
  if (arguments.size() != 1) return base::UsageError("one MODEL is expected");
  if (absl::GetFlag(FLAGS_text).empty() && !ServerIsNamed()) {
    return base::UsageError("--text is missing: name a file, or with --server a server that has run others");
  }
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<model::Model> model, model::Model::Open(arguments.front()));
  if (!model->hyperparameters().sparse()) {
    return absl::FailedPreconditionError(
        absl::StrCat("'", model->DisplayName(),
                     "' is dense: all of its neurons fire for every token, there is nothing to count"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(int64_t context, ScoringContext());
  context = std::min(context, model->hyperparameters().trained_context);
  // 'all' is exact.
  ISOTHERM_ASSIGN_OR_RETURN(const ScoringSession session,
                            OpenScoringSession({arguments.front(), "all", context}));
  ISOTHERM_ASSIGN_OR_RETURN(const v1::Model served, session.scorer->Model());
  ISOTHERM_RETURN_IF_ERROR(CheckServes(served, *model));
  ISOTHERM_ASSIGN_OR_RETURN(
      const model::Profile profile,
      Collect(*session.scorer, served, std::min<int64_t>(context, served.context_length())));
  const std::string out = absl::GetFlag(FLAGS_out);
  const std::string path = out.empty() ? model::ProfilePath(*model) : out;
  ISOTHERM_RETURN_IF_ERROR(model::WriteProfile(profile, *model, path));
  Report(profile, path);
  return absl::OkStatus();
}

}  // namespace

Command ProfileCommand() {
  base::Program program;
  program.name = "isotherm profile";
  program.summary =
      "Counts how often each neuron of a model fires, for gpu_worker to place the frequent ones. Runs a "
      "text through the model exactly and writes MODEL.profile.gguf. With --server the text is run there, in "
      "the mode of that server, and without --text what the server has run since its start is taken.";
  program.arguments = "MODEL";
  program.examples =
      "isotherm profile model.gguf --text=corpus.txt\n"
      "isotherm profile model.gguf --server=127.0.0.1:7070 --out=today.gguf    # of a live server";
  program.groups = {ScoringFlags(), {"Profile", {"out"}}};
  return {program, Run};
}

}  // namespace isotherm::cli
