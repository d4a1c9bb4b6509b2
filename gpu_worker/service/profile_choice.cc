#include "gpu_worker/service/profile_choice.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/observe/log.h"

namespace isotherm::gpu_worker {
namespace {

absl::StatusOr<ProfileChoice> Named(const std::string& path, const model::Model& model) {
  if (!model.hyperparameters().sparse()) {
    return absl::FailedPreconditionError(absl::StrCat("--profile=", path, ": '", model.DisplayName(),
                                                      "' is dense, all of its neurons fire for every token"));
  }
  absl::StatusOr<model::Profile> profile = model::ReadProfile(path, model);
  if (!profile.ok()) {
    return absl::Status(profile.status().code(), absl::StrCat("--profile: ", profile.status().message()));
  }
  return ProfileChoice{*std::move(profile), ""};
}

}  // namespace

absl::StatusOr<ProfileChoice> ChooseProfile(const ProfileOptions& options, const model::Model& model) {
  if (!options.path.empty()) return Named(options.path, model);
  if (!model.hyperparameters().sparse()) return ProfileChoice();

  model::FoundProfile found = model::FindProfile(model, options.directory);
  const bool none_beside = absl::IsNotFound(found.beside);
  const bool ours = found.profile.has_value() ? found.profile->online : none_beside || found.stale_online;
  if (!found.beside.ok() && !none_beside) {
    spdlog::warn("ignoring {}. {}", std::string(found.beside.message()),
                 ours && options.save ? "The counts of this run will take its place"
                                      : "Remove it, or write it anew with 'isotherm profile'");
  }
  const std::string save_path = ours && options.save ? model::ProfilePath(model, options.directory) : "";
  return ProfileChoice{std::move(found.profile), save_path};
}

void LogProfile(const ProfileChoice& choice, const model::Model& model) {
  if (!model.hyperparameters().sparse()) return;
  if (!choice.profile.has_value()) {
    spdlog::info(
        "no firing counts: the lowest numbered neurons become hot. 'isotherm profile' collects them");
    return;
  }
  spdlog::info("neurons are placed by firing counts of {} tokens from {}", choice.profile->tokens,
               choice.profile->source);
}

model::Profile AddOnline(const std::optional<model::Profile>& earlier, const Firings& firings) {
  model::Profile profile = earlier.value_or(model::Profile());
  profile.online = true;
  profile.source = "serving";
  profile.tokens += firings.tokens;
  profile.counts.resize(firings.counts.size());
  for (size_t layer = 0; layer < firings.counts.size(); ++layer) {
    const std::vector<uint64_t>& counts = firings.counts[layer];
    profile.counts[layer].resize(counts.size());
    for (size_t neuron = 0; neuron < counts.size(); ++neuron) {
      profile.counts[layer][neuron] += static_cast<double>(counts[neuron]);
    }
  }
  return profile;
}

}  // namespace isotherm::gpu_worker
