#ifndef ISOTHERM_TOOLS_CLI_SCORING_SESSION_H_
#define ISOTHERM_TOOLS_CLI_SCORING_SESSION_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/command_line.h"
#include "tools/cli/private_server.h"
#include "tools/cli/text_scorer.h"

// What the commands that run a text file through a model share: --text, --ctx, --device and --server.
namespace isotherm::cli {

base::FlagGroup ScoringFlags();

// A server to score on: the one --server names, or one of its own that lives as long as this.
struct ScoringSession {
  std::unique_ptr<PrivateServer> own;
  std::unique_ptr<TextScorer> scorer;
};
// What a server of its own is started with.
struct PrivateServerChoice {
  std::string model_path;
  std::string predictor;
  int64_t context = 0;
};
absl::StatusOr<ScoringSession> OpenScoringSession(const PrivateServerChoice& choice);

bool ServerIsNamed();
// The text of --text; a usage error without it.
absl::StatusOr<std::string> ScoringText();
// The name of --text for people, without its folder.
std::string ScoringTextName();
// --ctx, at least 2.
absl::StatusOr<int64_t> ScoringContext();

}  // namespace isotherm::cli

#endif  // ISOTHERM_TOOLS_CLI_SCORING_SESSION_H_
