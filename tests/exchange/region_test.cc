#include "common/exchange/region.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/exchange/doorbell.h"
#include "tests/exchange/harness.h"

namespace isotherm::exchange {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(RegionLayoutTest, ArraysAreAlignedAndDoNotOverlap) {
  for (const int64_t hidden : {1, 15, 16, 17, 4096}) {
    for (const int64_t ffn : {1, 63, 64, 65, 11008}) {
      for (const bool gate_values : {false, true}) {
        const Geometry geometry{
            .layers = 1, .hidden = hidden, .ffn = ffn, .max_rows = 3, .gate_values = gate_values};
        const RegionLayout layout = MakeRegionLayout(geometry, kSlots);
        for (const int64_t offset :
             {layout.x, layout.masks, layout.gate_values, layout.answer, layout.y, layout.slot_bytes}) {
          EXPECT_EQ(offset % kCacheLine, 0);
        }
        EXPECT_GE(layout.x, 64);
        EXPECT_GE(layout.masks - layout.x, 3 * hidden * 4);
        EXPECT_GE(layout.gate_values - layout.masks, 3 * ((ffn + 63) / 64) * 8);
        EXPECT_GE(layout.answer - layout.gate_values, gate_values ? 3 * ffn * 4 : 0);
        EXPECT_EQ(layout.y - layout.answer, 64);
        EXPECT_GE(layout.slot_bytes - layout.y, 3 * hidden * 4);
        EXPECT_GE(layout.region_bytes, kRegionHeaderBytes + kSlots * layout.slot_bytes);
        EXPECT_EQ(layout.region_bytes % 4096, 0);
      }
    }
  }
}

class RegionTest : public ::testing::Test {
 protected:
  absl::Status AttachStatus(const std::string& name, int64_t bytes) {
    return Region::Attach(directory_.path(), name, bytes, geometry_).status();
  }

  const Geometry geometry_ = SmallGeometry();
  TempDirectory directory_{"/dev/shm"};
};

TEST_F(RegionTest, IsThisUsersAloneAndAllocated) {
  const auto region = *Region::Create(directory_.path(), geometry_);
  struct stat info;
  ASSERT_EQ(stat((directory_.path() + "/" + region->name()).c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_EQ(info.st_size, region->bytes());
  EXPECT_GE(info.st_blocks * 512, region->bytes());
  EXPECT_EQ(region->name().size(), std::string("isotherm-exchange-").size() + 32);
}

// A cpu_worker that is killed between naming a region and its peer's mapping it cannot clean up.
TEST_F(RegionTest, CreationRemovesWhatKilledProcessesLeft) {
  const auto living = *Region::Create(directory_.path(), geometry_);
  const std::string abandoned = directory_.path() + "/isotherm-exchange-0123456789abcdef";
  const std::string foreign = directory_.path() + "/somebody-elses";
  std::ofstream(abandoned) << "left";
  std::ofstream(foreign) << "kept";
  const auto region = *Region::Create(directory_.path(), geometry_);
  EXPECT_NE(access(abandoned.c_str(), F_OK), 0);
  EXPECT_EQ(access(foreign.c_str(), F_OK), 0);
  EXPECT_TRUE(AttachStatus(living->name(), living->bytes()).ok());
  EXPECT_TRUE(AttachStatus(region->name(), region->bytes()).ok());
}

TEST_F(RegionTest, TwoMappingsShareOneMemory) {
  const auto server = *Region::Create(directory_.path(), geometry_);
  const auto client = *Region::Attach(directory_.path(), server->name(), server->bytes(), geometry_);
  EXPECT_EQ(client->generation(), server->generation());
  EXPECT_NE(client->generation(), 0u);
  client->slot(3).y[7] = 2.5f;
  EXPECT_EQ(server->slot(3).y[7], 2.5f);
  EXPECT_EQ(server->slot(1).y[7], 2.5f) << "sequences 1 and 3 share a slot of two";
  EXPECT_EQ(server->slot(2).y[7], 0.0f);
  client->Fail();
  EXPECT_TRUE(server->failed());
  StoreWord(&server->header()->failed, 0);
  EXPECT_TRUE(client->failed()) << "the peer cleared a failure";
}

TEST_F(RegionTest, NamesVanish) {
  auto region = *Region::Create(directory_.path(), geometry_);
  EXPECT_THAT(directory_.Files(), ::testing::SizeIs(1));
  region->RemoveName();
  EXPECT_THAT(directory_.Files(), IsEmpty());
  region = *Region::Create(directory_.path(), geometry_);
  region.reset();
  EXPECT_THAT(directory_.Files(), IsEmpty());
}

TEST_F(RegionTest, RefusesWhatIsNotTheAgreedRegion) {
  const auto region = *Region::Create(directory_.path(), geometry_);
  const std::string& name = region->name();
  EXPECT_THAT(std::string(AttachStatus("isotherm-exchange-missing", region->bytes()).message()),
              HasSubstr("cannot open the exchange region"));
  for (const std::string& bad : {std::string("../passwd"), std::string("isotherm-exchange-/../x"),
                                 std::string(), name + std::string(1, '\0'), std::string("other")}) {
    EXPECT_EQ(AttachStatus(bad, region->bytes()).code(), absl::StatusCode::kFailedPrecondition) << bad;
  }
  EXPECT_EQ(AttachStatus(name, region->bytes() + 4096).code(), absl::StatusCode::kFailedPrecondition);
  Geometry other = geometry_;
  other.layers += 1;  // the same size
  EXPECT_THAT(std::string(Region::Attach(directory_.path(), name, region->bytes(), other).status().message()),
              HasSubstr("not what was agreed"));
  RegionHeader* header = region->header();
  for (uint32_t* field : {&header->layout_version, &header->slots, &header->max_rows}) {
    ++*field;
    EXPECT_EQ(AttachStatus(name, region->bytes()).code(), absl::StatusCode::kFailedPrecondition);
    --*field;
  }
  EXPECT_EQ(AttachStatus(name, region->bytes()), absl::OkStatus());
  ASSERT_EQ(truncate((directory_.path() + "/" + name).c_str(), 4096), 0);
  EXPECT_EQ(AttachStatus(name, region->bytes()).code(), absl::StatusCode::kFailedPrecondition);
  symlink("/dev/zero", (directory_.path() + "/isotherm-exchange-link").c_str());
  EXPECT_FALSE(AttachStatus("isotherm-exchange-link", region->bytes()).ok());
}

TEST_F(RegionTest, ADirectoryThatCannotBeWrittenIsNamed) {
  const absl::Status error = Region::Create(directory_.path() + "/missing", geometry_).status();
  EXPECT_THAT(std::string(error.message()), HasSubstr(directory_.path() + "/missing/isotherm-exchange-"));
}

TEST(DoorbellTest, AParkedWaiterIsWoken) {
  alignas(64) uint32_t bell = 0;
  alignas(64) uint32_t parked = 0;
  std::thread ringer([&] {
    while (LoadWord(&parked) == 0) base::CpuRelax();
    StoreWord(&bell, 1);
    WakeParked(&parked);
  });
  const int64_t start = MonotonicNanoseconds();
  EXPECT_TRUE(SpinThenPark(&parked, 0, 10'000'000'000, [&] { return LoadWord(&bell) == 1; }));
  EXPECT_LT(MonotonicNanoseconds() - start, 5'000'000'000);
  ringer.join();
}

TEST(DoorbellTest, AWriteWithoutAWakeCostsOneSlice) {
  alignas(64) uint32_t bell = 0;
  alignas(64) uint32_t parked = 0;
  std::thread device([&] {
    while (LoadWord(&parked) == 0) base::CpuRelax();
    StoreWord(&bell, 1);
  });
  while (!SpinThenPark(&parked, 0, 1'000'000, [&] { return LoadWord(&bell) == 1; })) {
  }
  EXPECT_EQ(LoadWord(&parked), 0u);
  device.join();
}

TEST(DoorbellTest, AWaitIsBounded) {
  alignas(64) uint32_t parked = 0;
  const int64_t start = MonotonicNanoseconds();
  EXPECT_FALSE(SpinThenPark(&parked, 1'000'000, 5'000'000, [] { return false; }));
  EXPECT_GE(MonotonicNanoseconds() - start, 5'000'000);
}

}  // namespace
}  // namespace isotherm::exchange
