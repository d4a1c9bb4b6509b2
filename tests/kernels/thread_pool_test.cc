#include "common/base/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/base/config.h"

namespace isotherm::base {
namespace {

ThreadPool::Options Threads(int threads, int spin_us = 0) {
  ThreadPool::Options options;
  options.threads = threads;
  options.spin_us = spin_us;
  return options;
}

double ProcessCpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) { return time.tv_sec + 1e-6 * time.tv_usec; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

class ThreadPoolTest : public ::testing::TestWithParam<ThreadPool::Options> {};

INSTANTIATE_TEST_SUITE_P(Shapes, ThreadPoolTest,
                         ::testing::Values(Threads(1), Threads(2), Threads(2, 50), Threads(5),
                                           Threads(16, 20)),
                         [](const auto& info) {
                           return std::to_string(info.param.threads) + "ThreadsSpin" +
                                  std::to_string(info.param.spin_us);
                         });

// Plain variables: the thread sanitizer sees whether Run orders what it must.
TEST_P(ThreadPoolTest, RunCallsEveryMemberOnceAndWaits) {
  ThreadPool pool(GetParam());
  ASSERT_EQ(pool.threads(), GetParam().threads);
  std::vector<int> calls(pool.threads(), 0);
  for (int run = 1; run <= 2000; ++run) {
    pool.Run([&](int member) { ++calls[member]; });
    for (const int count : calls) ASSERT_EQ(count, run);
  }
}

TEST_P(ThreadPoolTest, TheCallerIsMemberZero) {
  ThreadPool pool(GetParam());
  std::vector<std::thread::id> ids(pool.threads());
  pool.Run([&](int member) { ids[member] = std::this_thread::get_id(); });
  EXPECT_EQ(ids[0], std::this_thread::get_id());
  for (size_t i = 1; i < ids.size(); ++i) EXPECT_NE(ids[i], ids[0]);
}

TEST_P(ThreadPoolTest, ParallelForCoversEveryIndexOnce) {
  ThreadPool pool(GetParam());
  for (const int64_t count : {0, 1, 2, 7, 64, 1000}) {
    for (const int64_t grain : {1, 3, 64, 5000}) {
      std::vector<int> visits(count, 0);
      std::atomic<bool> well_formed{true};
      pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end, int member) {
        if (begin % grain != 0 || end <= begin || end - begin > grain || end > count) well_formed = false;
        if (member < 0 || member >= pool.threads()) well_formed = false;
        for (int64_t i = begin; i < end; ++i) ++visits[i];
      });
      EXPECT_TRUE(well_formed);
      for (int64_t i = 0; i < count; ++i) ASSERT_EQ(visits[i], 1) << i << " of " << count << " by " << grain;
    }
  }
}

TEST(ThreadPool, ParallelForHandsRangesOutInAscendingOrder) {
  ThreadPool pool(Threads(3));
  std::vector<std::vector<int64_t>> begins(pool.threads());
  pool.ParallelFor(300, 1, [&](int64_t begin, int64_t, int member) { begins[member].push_back(begin); });
  for (const std::vector<int64_t>& seen : begins) {
    for (size_t i = 1; i < seen.size(); ++i) EXPECT_LT(seen[i - 1], seen[i]);
  }
}

TEST(ThreadPool, NoTimeIsLostToStragglers) {
  ThreadPool pool(Threads(4));
  for (int run = 0; run < 50; ++run) {
    std::atomic<int> finished{0};
    pool.Run([&](int member) {
      if (member == run % 4) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      ++finished;
    });
    ASSERT_EQ(finished, 4);
  }
}

TEST(ThreadPool, ParksWhenIdle) {
  ThreadPool pool(Threads(4, 1000));
  pool.Run([](int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const double before = ProcessCpuSeconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(ProcessCpuSeconds() - before, 0.003);
  int calls[4] = {};
  pool.Run([&](int member) { ++calls[member]; });
  for (const int count : calls) EXPECT_EQ(count, 1);
}

TEST(ThreadPool, AnotherThreadMayCallLater) {
  ThreadPool pool(Threads(3));
  std::atomic<int> calls{0};
  pool.Run([&](int) { ++calls; });
  std::thread([&] { pool.Run([&](int) { ++calls; }); }).join();
  pool.Run([&](int) { ++calls; });
  EXPECT_EQ(calls, 9);
}

TEST(ThreadPool, EndsAtOnceWhetherUsedOrNot) {
  for (int i = 0; i < 100; ++i) {
    ThreadPool pool(Threads(1 + i % 4, i % 2 * 100));
    if (i % 3 == 0) pool.Run([](int) {});
  }
}

// Leaves this process so many bytes of address space more.
void LimitAddressSpace(int64_t more) {
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const auto bytes = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE) + more);
  const rlimit limit{bytes, bytes};
  setrlimit(RLIMIT_AS, &limit);
}

TEST(ThreadPoolDeathTest, EndsTheThreadsBeforeTheOneThatTheSystemRefuses) {
#if defined(ABSL_HAVE_ADDRESS_SANITIZER) || defined(ABSL_HAVE_THREAD_SANITIZER)
  GTEST_SKIP() << "sanitizers need more address space than any limit leaves";
#endif
  EXPECT_EXIT(
      {
        LimitAddressSpace(int64_t{256} << 20);
        try {
          ThreadPool pool(Threads(4096));
        } catch (const std::system_error& error) {
          std::fputs(error.what(), stderr);
          _exit(0);
        }
        _exit(1);
      },
      ::testing::ExitedWithCode(0), "cannot start thread [0-9]+ of 4096: ");
}

TEST(ThreadPool, PinsMembersToTheProcessesCpus) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  ThreadPool::Options options = Threads(2);
  options.pin = true;
  cpu_set_t seen[2];
  // On a thread of its own, because the caller is pinned too.
  std::thread([&] {
    ThreadPool pool(options);
    pool.Run([&](int member) { sched_getaffinity(0, sizeof(cpu_set_t), &seen[member]); });
  }).join();
  for (const cpu_set_t& set : seen) EXPECT_EQ(CPU_COUNT(&set), 1);
  EXPECT_EQ(CPU_EQUAL(&seen[0], &seen[1]), CPU_COUNT(&allowed) == 1);
}

}  // namespace
}  // namespace isotherm::base
