#ifndef ISOTHERM_COMMON_BASE_HOST_H_
#define ISOTHERM_COMMON_BASE_HOST_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

// What this process may use of the machine it runs on. Sizes are in bytes. Thread-safe; nothing is cached.
//
// `root` stands before /proc and /sys, so that tests can show another machine.
namespace isotherm::base {

// The kernel's random id of this boot: equal for two processes exactly if they share a kernel.
absl::StatusOr<std::string> BootId(const std::string& root = "");

// Of the file system that holds `path`. With BootId it proves that two processes see the same directory.
absl::StatusOr<uint64_t> DeviceNumber(const std::string& path);

// Cores (not hyper-threads) in the process's affinity mask, at most the CPU quota of its cgroups rounded up;
// at least 1.
int PhysicalCores(const std::string& root = "");

// The smallest memory limit of the process's cgroup (v1 or v2) and its ancestors; nullopt if there is none.
std::optional<int64_t> CgroupMemoryLimit(const std::string& root = "");

// What can be allocated without swapping or being killed: the kernel's estimate, but no more than any cgroup
// limit leaves.
absl::StatusOr<int64_t> AvailableMemory(const std::string& root = "");

// Free for an unprivileged process on the file system of `directory`.
absl::StatusOr<int64_t> FreeSpace(const std::string& directory);

// RLIMIT_MEMLOCK; INT64_MAX if unlimited.
int64_t LockedMemoryLimit();

}  // namespace isotherm::base

#endif  // ISOTHERM_COMMON_BASE_HOST_H_
