#include "common/base/host.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "common/base/random_id.h"

namespace isotherm::base {
namespace {

// A made-up machine's /proc and /sys in a temporary folder.
class FakeHostTest : public testing::Test {
 protected:
  FakeHostTest() {
    Write("/proc/meminfo", "MemTotal:       64000 kB\nMemFree:  1 kB\nMemAvailable:   32000 kB\n");
  }
  ~FakeHostTest() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& content) {
    const std::filesystem::path full = root_ + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << content;
  }
  const std::string root_ = testing::TempDir() + "host-" + RandomId();
};

TEST_F(FakeHostTest, WithoutCgroupsTheKernelsEstimateCounts) {
  EXPECT_EQ(CgroupMemoryLimit(root_), std::nullopt);
  EXPECT_EQ(AvailableMemory(root_).value(), 32000 * 1024);
}

TEST_F(FakeHostTest, TheTightestVersion2GroupCountsAndItsDroppableCacheDoesNot) {
  Write("/proc/self/cgroup", "0::/user.slice/app.scope\n");
  Write("/sys/fs/cgroup/user.slice/app.scope/memory.max", "max\n");
  Write("/sys/fs/cgroup/user.slice/memory.max", "20000000\n");
  Write("/sys/fs/cgroup/user.slice/memory.current", "9000000\n");
  Write("/sys/fs/cgroup/user.slice/memory.stat", "anon 1\ninactive_file 4000000\nactive_file 7\n");
  EXPECT_EQ(CgroupMemoryLimit(root_), 20000000);
  EXPECT_EQ(AvailableMemory(root_).value(), 20000000 - 5000000);
}

TEST_F(FakeHostTest, AVersion1LimitCountsAlsoWhenTheGroupsPathIsHidden) {
  Write("/proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/docker/abc\n1:name=systemd:/\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n");
  Write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "400000\n");
  Write("/sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 100000\n");
  EXPECT_EQ(CgroupMemoryLimit(root_), 1000000);
  EXPECT_EQ(AvailableMemory(root_).value(), 700000);
}

TEST_F(FakeHostTest, Version1ShowsNoLimitAsAHugeOne) {
  Write("/proc/self/cgroup", "4:memory:/\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(CgroupMemoryLimit(root_), std::nullopt);
}

TEST_F(FakeHostTest, AGroupOverItsLimitLeavesNothing) {
  Write("/proc/self/cgroup", "0::/\n");
  Write("/sys/fs/cgroup/memory.max", "1000\n");
  Write("/sys/fs/cgroup/memory.current", "2000\n");
  EXPECT_EQ(AvailableMemory(root_).value(), 0);
}

TEST_F(FakeHostTest, AnUnreadableEstimateIsAnErrorThatNamesTheFile) {
  Write("/proc/meminfo", "MemTotal: 5 kB\n");
  EXPECT_THAT(AvailableMemory(root_).status().message(), testing::HasSubstr("/proc/meminfo"));
  EXPECT_FALSE(AvailableMemory(root_ + "/nowhere").ok());
}

TEST_F(FakeHostTest, HyperThreadsOfACoreCountOnce) {
  const int cpus = get_nprocs_conf();
  for (int cpu = 0; cpu < cpus; ++cpu) {
    const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    Write(topology + "physical_package_id", "0\n");
    Write(topology + "core_id", "7\n");
  }
  EXPECT_EQ(PhysicalCores(root_), 1);
}

TEST_F(FakeHostTest, CoresAreCappedByTheCpuQuotaRoundedUp) {
  Write("/proc/self/cgroup", "0::/a\n");
  Write("/sys/fs/cgroup/a/cpu.max", "max 100000\n");
  const int unlimited = PhysicalCores(root_);  // no topology below the root: every allowed CPU
  EXPECT_GE(unlimited, 1);
  EXPECT_LE(unlimited, get_nprocs_conf());
  Write("/sys/fs/cgroup/cpu.max", "50000 100000\n");
  EXPECT_EQ(PhysicalCores(root_), 1);
  Write("/sys/fs/cgroup/cpu.max", "110000 100000\n");
  EXPECT_EQ(PhysicalCores(root_), std::min(unlimited, 2));

  Write("/proc/self/cgroup", "1:cpu,cpuacct:/\n");
  Write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  Write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(PhysicalCores(root_), unlimited);
  Write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "100000\n");
  EXPECT_EQ(PhysicalCores(root_), 1);
}

TEST(HostTest, ThisMachineAnswers) {
  EXPECT_THAT(BootId().value(), testing::MatchesRegex("[0-9a-f-]+"));
  EXPECT_EQ(BootId().value(), BootId().value());
  EXPECT_GE(PhysicalCores(), 1);
  EXPECT_GT(AvailableMemory().value(), 0);
  EXPECT_GT(FreeSpace(testing::TempDir()).value(), 0);
}

TEST(HostTest, DeviceNumbersTellFileSystemsApart) {
  EXPECT_EQ(DeviceNumber("/proc").value(), DeviceNumber("/proc/self").value());
  EXPECT_NE(DeviceNumber("/proc").value(), DeviceNumber("/").value());
}

TEST(HostTest, AbsentPathsAreErrorsThatNameThem) {
  EXPECT_EQ(DeviceNumber("/no/such").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(FreeSpace("/no/such").status().message(), testing::HasSubstr("/no/such"));
  EXPECT_EQ(BootId("/no/such").status().code(), absl::StatusCode::kNotFound);
}

TEST(HostTest, LockedMemoryLimitFollowsTheResourceLimit) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_MEMLOCK, &before), 0);
  rlimit lowered = before;
  lowered.rlim_cur = 4096;
  ASSERT_EQ(setrlimit(RLIMIT_MEMLOCK, &lowered), 0);
  EXPECT_EQ(LockedMemoryLimit(), 4096);
  ASSERT_EQ(setrlimit(RLIMIT_MEMLOCK, &before), 0);
}

}  // namespace
}  // namespace isotherm::base
