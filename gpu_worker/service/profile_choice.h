#ifndef ISOTHERM_GPU_WORKER_SERVICE_PROFILE_CHOICE_H_
#define ISOTHERM_GPU_WORKER_SERVICE_PROFILE_CHOICE_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/model/model.h"
#include "common/model/profile.h"
#include "gpu_worker/service/firing_log.h"

namespace isotherm::gpu_worker {

struct ProfileOptions {
  // Empty: the first there is of the profile beside the model and the counts inside it.
  std::string path;
  // Where the profile beside the model lies, if not there.
  std::string directory;
  // Whether firings counted while serving are saved.
  bool save = true;
};

struct ProfileChoice {
  // What says which neurons are hot; absent: nothing does.
  std::optional<model::Profile> profile;
  // Where to save the firings counted while serving, on top of `profile`; empty: nowhere. Only where there is
  // no profile but such a one: whoever made another meant it to be used.
  std::string save_path;
};

// FailedPrecondition or InvalidArgument where options.path is no profile of this model. Another profile that
// is not, found beside the model, is left alone with a warning.
absl::StatusOr<ProfileChoice> ChooseProfile(const ProfileOptions& options, const model::Model& model);

// For people, in the log.
void LogProfile(const ProfileChoice& choice, const model::Model& model);

// What was counted while serving, added to what earlier lives counted.
model::Profile AddOnline(const std::optional<model::Profile>& earlier, const Firings& firings);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_SERVICE_PROFILE_CHOICE_H_
