#include "common/base/host.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <limits>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/cgroup.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace isotherm::base {
namespace {

// CPU numbers in the process's affinity mask; empty if the kernel does not say.
std::vector<int> AllowedCpus() {
  // The kernel refuses masks smaller than its own; 64 Ki CPUs is eight times the most it can be built for.
  constexpr int kMostCpus = 1 << 16;
  const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(kMostCpus),
                                                             [](cpu_set_t* p) { CPU_FREE(p); });
  const size_t bytes = CPU_ALLOC_SIZE(kMostCpus);
  std::vector<int> cpus;
  if (!set || sched_getaffinity(0, bytes, set.get()) != 0) return cpus;
  for (int cpu = 0; cpu < kMostCpus; ++cpu) {
    if (CPU_ISSET_S(static_cast<size_t>(cpu), bytes, set.get())) cpus.push_back(cpu);
  }
  return cpus;
}

}  // namespace

absl::StatusOr<std::string> BootId(const std::string& root) {
  ISOTHERM_ASSIGN_OR_RETURN(std::string id, ReadSmallFile(root + "/proc/sys/kernel/random/boot_id"));
  absl::StripAsciiWhitespace(&id);
  if (id.empty()) return absl::UnavailableError("the kernel's boot id is empty");
  return id;
}

absl::StatusOr<uint64_t> DeviceNumber(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) return absl::ErrnoToStatus(errno, path);
  return static_cast<uint64_t>(status.st_dev);
}

int PhysicalCores(const std::string& root) {
  std::set<std::pair<std::string, std::string>> cores;  // (package, core)
  const std::vector<int> cpus = AllowedCpus();
  for (const int cpu : cpus) {
    const std::string topology = absl::StrCat(root, "/sys/devices/system/cpu/cpu", cpu, "/topology/");
    const absl::StatusOr<std::string> package = ReadSmallFile(topology + "physical_package_id");
    const absl::StatusOr<std::string> core = ReadSmallFile(topology + "core_id");
    // Where the topology is hidden every CPU counts as a core.
    cores.emplace(package.ok() ? *package : "", core.ok() ? *core : absl::StrCat("cpu", cpu));
  }
  int count =
      cpus.empty() ? static_cast<int>(std::thread::hardware_concurrency()) : static_cast<int>(cores.size());
  if (const std::optional<double> quota = CgroupCpuQuota(root)) {
    count = static_cast<int>(std::min<double>(count, std::ceil(*quota)));
  }
  return std::max(count, 1);
}

std::optional<int64_t> CgroupMemoryLimit(const std::string& root) {
  std::optional<int64_t> smallest;
  for (const CgroupMemory& group : LimitedMemoryCgroups(root)) {
    smallest = std::min(smallest.value_or(group.limit), group.limit);
  }
  return smallest;
}

absl::StatusOr<int64_t> AvailableMemory(const std::string& root) {
  const std::string path = root + "/proc/meminfo";
  ISOTHERM_ASSIGN_OR_RETURN(const std::string meminfo, ReadSmallFile(path));
  std::optional<int64_t> available;
  for (const absl::string_view line : absl::StrSplit(meminfo, '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    int64_t kibibytes = 0;
    if (words.size() == 3 && words[0] == "MemAvailable:" && absl::SimpleAtoi(words[1], &kibibytes)) {
      available = kibibytes * 1024;
    }
  }
  if (!available) return absl::UnavailableError(path + " has no MemAvailable line");
  for (const CgroupMemory& group : LimitedMemoryCgroups(root)) {
    available = std::min(*available, std::max<int64_t>(0, group.limit - group.used));
  }
  return *available;
}

absl::StatusOr<int64_t> FreeSpace(const std::string& directory) {
  struct statvfs status;
  if (statvfs(directory.c_str(), &status) != 0) return absl::ErrnoToStatus(errno, directory);
  return static_cast<int64_t>(status.f_bavail) * static_cast<int64_t>(status.f_frsize);
}

int64_t LockedMemoryLimit() {
  rlimit limit;
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return 0;
  return limit.rlim_cur >= static_cast<rlim_t>(kMost) ? kMost : static_cast<int64_t>(limit.rlim_cur);
}

}  // namespace isotherm::base
