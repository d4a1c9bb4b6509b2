#ifndef ISOTHERM_COMMON_BASE_CGROUP_H_
#define ISOTHERM_COMMON_BASE_CGROUP_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

// The limits that control groups put on this process; base/host.h combines them with what the machine has.
namespace isotherm::base {

// One group that the process is in, or an ancestor of it.
struct CgroupMemory {
  int64_t limit = 0;
  int64_t used = 0;  // without page cache that the kernel would drop first
};

// The groups with a memory limit, leaf first, both of version 1 and of version 2.
std::vector<CgroupMemory> LimitedMemoryCgroups(const std::string& root);

// The smallest CPU quota, in CPUs; nullopt if there is none.
std::optional<double> CgroupCpuQuota(const std::string& root);

}  // namespace isotherm::base

#endif  // ISOTHERM_COMMON_BASE_CGROUP_H_
