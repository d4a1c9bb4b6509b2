#include "cpu_worker/store/bundle_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

namespace isotherm::cpu_worker {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

// Bytes of this process's memory files for neurons that the kernel maps by huge pages.
int64_t BytesInHugePages() {
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool neurons = false;
  int64_t kib = 0;
  while (std::getline(smaps, line)) {
    std::istringstream words(line);
    std::string name;
    int64_t value = 0;
    if (!(words >> name)) continue;
    // A mapping begins with its addresses; its properties follow.
    if (name.back() != ':') neurons = line.find("isotherm-neurons") != std::string::npos;
    if (neurons && name == "ShmemPmdMapped:" && words >> value) kib += value;
  }
  return kib * 1024;
}

TEST(BundleMemoryTest, TellsWhatLiesInHugePages) {
  base::ThreadPool pool({.threads = 2});
  // More pages than are asked for at once, and not whole ones.
  const int64_t bytes = 37 * kHugePage + 12345;
  absl::StatusOr<BundleMemory> memory = BundleMemory::Map(bytes);
  ASSERT_TRUE(memory.ok()) << memory.status();
  if (memory->file() < 0) GTEST_SKIP() << "this kernel has no huge pages for memory files";
  EXPECT_GE(memory->bytes(), bytes);
  EXPECT_EQ(memory->bytes() % kHugePage, 0);
  const int64_t told = memory->Populate(pool);
  EXPECT_EQ(told, BytesInHugePages());
  EXPECT_GT(told, 0);
  EXPECT_LE(told, memory->bytes());
  EXPECT_TRUE(
      std::all_of(memory->data(), memory->data() + memory->bytes(), [](uint8_t b) { return b == 0; }));
  EXPECT_TRUE(memory->Seal().ok());
}

TEST(BundleMemoryTest, PrivateMemoryIsNoFile) {
  base::ThreadPool pool({.threads = 2});
  absl::StatusOr<BundleMemory> memory = BundleMemory::MapPrivate(kHugePage);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->file(), -1);
  EXPECT_EQ(memory->Populate(pool), 0);
  memory->data()[kHugePage - 1] = 1;
  EXPECT_TRUE(memory->Seal().ok());
}

}  // namespace
}  // namespace isotherm::cpu_worker
