#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iostream>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "common/rpc/api_key.h"
#include "tools/cli/commands.h"

ABSL_FLAG(std::string, keys, "isotherm.keys",
          "File of hashed keys, the gateway's --api-keys. Made if missing.");
ABSL_FLAG(int64_t, requests_per_minute, 0, "Calls a minute that the key is good for. 0: any number.");
ABSL_FLAG(int64_t, tokens_per_minute, 0,
          "Prompt and generated tokens a minute that the key is good for. 0: any number.");
ABSL_FLAG(int64_t, concurrent, 0, "Calls at once that the key is good for. 0: any number.");

namespace isotherm::cli {
namespace {

absl::Status CheckNameIsFree(const std::string& path, const std::string& name) {
  const absl::StatusOr<std::string> text = base::ReadSmallFile(path);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  ISOTHERM_RETURN_IF_ERROR(text.status());
  const absl::StatusOr<std::vector<rpc::ApiKey>> keys = rpc::ParseKeys(*text);
  if (!keys.ok()) return absl::InvalidArgumentError(absl::StrCat(path, ": ", keys.status().message()));
  const auto has_name = [&name](const rpc::ApiKey& key) { return key.name == name; };
  if (std::any_of(keys->begin(), keys->end(), has_name)) {
    return absl::AlreadyExistsError(
        absl::StrCat(path, " has a key '", name, "' already: delete its line, or take another name"));
  }
  return absl::OkStatus();
}

// One write, so that a gateway never reads half a line.
absl::Status Append(const std::string& path, const std::string& line) {
  const base::UniqueFd file(open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600));
  if (!file.valid() || write(file.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
    return absl::ErrnoToStatus(errno, path);
  }
  return absl::OkStatus();
}

absl::Status Run(const std::vector<std::string>& arguments) {
  if (arguments.size() != 2 || arguments[0] != "create") {
    return base::UsageError("use: isotherm key create NAME");
  }
  const rpc::KeyLimits limits = {absl::GetFlag(FLAGS_requests_per_minute),
                                 absl::GetFlag(FLAGS_tokens_per_minute), absl::GetFlag(FLAGS_concurrent)};
  if (std::min({limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent}) < 0) {
    return base::UsageError("a limit is negative; 0 is none");
  }
  const absl::StatusOr<rpc::NewApiKey> key = rpc::MakeApiKey(arguments[1], limits);
  if (absl::IsInvalidArgument(key.status())) return base::UsageError(std::string(key.status().message()));
  ISOTHERM_RETURN_IF_ERROR(key.status());
  const std::string path = absl::GetFlag(FLAGS_keys);
  ISOTHERM_RETURN_IF_ERROR(CheckNameIsFree(path, arguments[1]));
  ISOTHERM_RETURN_IF_ERROR(Append(path, key->line));
  std::cout << key->key << std::endl;
  std::cerr << "This is the only time the key is shown; " << path << " has its hash." << std::endl;
  return absl::OkStatus();
}

}  // namespace

Command KeyCommand() {
  base::Program program;
  program.name = "isotherm key";
  program.summary =
      "Makes API keys for a gateway. The key goes to standard output, a line with its hash to the file "
      "that the gateway's --api-keys names. A key ends when its line is deleted, or has 'disabled' among its "
      "limits.";
  program.arguments = "create NAME";
  program.examples =
      "isotherm key create alice --keys=/etc/isotherm/keys > alice.key\n"
      "isotherm key create batch --keys=/etc/isotherm/keys --tokens-per-minute=20000 --concurrent=4";
  program.groups = {{"Key", {"keys", "requests_per_minute", "tokens_per_minute", "concurrent"}}};
  return {program, Run};
}

}  // namespace isotherm::cli
