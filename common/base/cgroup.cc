#include "common/base/cgroup.h"

#include <algorithm>
#include <functional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/file.h"

namespace isotherm::base {
namespace {

// Version 1 shows "no limit" as the largest multiple of the page size; no machine has this much.
constexpr int64_t kNoLimit = int64_t{1} << 60;

std::string ReadOr(const std::string& path, const std::string& otherwise) {
  absl::StatusOr<std::string> content = ReadSmallFile(path);
  return content.ok() ? *std::move(content) : otherwise;
}

// The first integer in the file; nullopt for "max", an absent file or anything else.
std::optional<int64_t> ReadInteger(const std::string& path) {
  const std::string content = ReadOr(path, "");
  int64_t value = 0;
  const std::vector<std::string> words = absl::StrSplit(content, absl::ByAnyChar(" \n"), absl::SkipEmpty());
  if (words.empty() || !absl::SimpleAtoi(words[0], &value)) return std::nullopt;
  return value;
}

// The value after `key` in a file of "key value" lines; 0 if absent.
int64_t ReadKey(const std::string& path, absl::string_view key) {
  const std::string content = ReadOr(path, "");
  for (const absl::string_view line : absl::StrSplit(content, '\n')) {
    const std::pair<absl::string_view, absl::string_view> words =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    int64_t value = 0;
    if (words.first == key && absl::SimpleAtoi(words.second, &value)) return value;
  }
  return 0;
}

// Calls visit(directory, version) for every group of the process that has the controller, from the leaf to
// the root. Inside a container the path that /proc shows may not exist below the mount; such directories
// simply hold no files.
void VisitCgroups(const std::string& root, absl::string_view controller,
                  const std::function<void(const std::string&, int version)>& visit) {
  const std::string memberships = ReadOr(absl::StrCat(root, "/proc/self/cgroup"), "");
  for (const absl::string_view line : absl::StrSplit(memberships, '\n', absl::SkipEmpty())) {
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    const bool unified = fields[0] == "0" && fields[1].empty();
    const std::vector<std::string> controllers = absl::StrSplit(fields[1], ',');
    if (!unified && std::find(controllers.begin(), controllers.end(), controller) == controllers.end())
      continue;

    const std::string mount =
        unified ? absl::StrCat(root, "/sys/fs/cgroup") : absl::StrCat(root, "/sys/fs/cgroup/", fields[1]);
    std::string path = fields[2] == "/" ? "" : fields[2];
    for (;;) {
      visit(mount + path, unified ? 2 : 1);
      if (path.empty()) break;
      path.resize(std::min(path.rfind('/'), path.size() - 1));
    }
  }
}

}  // namespace

std::vector<CgroupMemory> LimitedMemoryCgroups(const std::string& root) {
  std::vector<CgroupMemory> groups;
  VisitCgroups(root, "memory", [&](const std::string& directory, int version) {
    const bool v2 = version == 2;
    const std::optional<int64_t> limit =
        ReadInteger(absl::StrCat(directory, v2 ? "/memory.max" : "/memory.limit_in_bytes"));
    if (!limit || *limit >= kNoLimit) return;
    const int64_t used =
        ReadInteger(absl::StrCat(directory, v2 ? "/memory.current" : "/memory.usage_in_bytes")).value_or(0);
    const int64_t droppable =
        ReadKey(absl::StrCat(directory, "/memory.stat"), v2 ? "inactive_file" : "total_inactive_file");
    groups.push_back({*limit, std::max<int64_t>(0, used - droppable)});
  });
  return groups;
}

std::optional<double> CgroupCpuQuota(const std::string& root) {
  std::optional<double> smallest;
  VisitCgroups(root, "cpu", [&](const std::string& directory, int version) {
    std::optional<int64_t> quota, period;
    if (version == 2) {
      // "200000 100000", or "max 100000" without a quota.
      const std::vector<std::string> words = absl::StrSplit(ReadOr(absl::StrCat(directory, "/cpu.max"), ""),
                                                            absl::ByAnyChar(" \n"), absl::SkipEmpty());
      int64_t values[2];
      if (words.size() != 2 || !absl::SimpleAtoi(words[0], &values[0]) ||
          !absl::SimpleAtoi(words[1], &values[1]))
        return;
      quota = values[0];
      period = values[1];
    } else {
      quota = ReadInteger(absl::StrCat(directory, "/cpu.cfs_quota_us"));
      period = ReadInteger(absl::StrCat(directory, "/cpu.cfs_period_us"));
    }
    if (!quota || *quota <= 0 || !period || *period <= 0) return;
    const double cpus = static_cast<double>(*quota) / static_cast<double>(*period);
    smallest = std::min(smallest.value_or(cpus), cpus);
  });
  return smallest;
}

}  // namespace isotherm::base
