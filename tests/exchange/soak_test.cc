#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "tests/exchange/harness.h"

// Many exchanges, every byte of every answer checked.
namespace isotherm::exchange {
namespace {

void Soak(Transport transport, int64_t exchanges, int spin_us) {
  const Geometry geometry{.layers = 4, .hidden = 4, .ffn = 70, .max_rows = 3, .gate_values = true};
  TempDirectory directory("/dev/shm");
  const std::string socket = directory.path() + "/socket";
  FakeExecutor executor(geometry);
  TestServer server(socket, {.shm_directory = directory.path(), .spin_us = spin_us}, PolicyFor(geometry),
                    &executor);
  const auto stub = MakeStub(socket);
  ClientOptions options = ClientFor(geometry, transport, directory.path());
  options.spin_us = spin_us;
  auto channel = Connect(stub.get(), options);
  ASSERT_TRUE(channel.ok()) << channel.status();
  for (int64_t i = 0; i < exchanges; ++i) {
    const RequestHeader header{.step = static_cast<uint64_t>(i / 4),
                               .layer = i % 4,
                               .rows = 1 + i % 3,
                               .dense = i % 5 == 0,
                               .has_gate_values = i % 7 == 0};
    if (i % 4 == 0) (*channel)->BeginStep(header.step);
    ASSERT_EQ(RoundTrip(channel->get(), geometry, RandomRequest(geometry, header, static_cast<uint64_t>(i))),
              absl::OkStatus())
        << "exchange " << i;
    if (i % 4 == 3) (*channel)->EndStep();
  }
}

// Parking every time: each exchange depends on two wake-ups, and one lost would cost a slice.
TEST(SoakTest, SharedMemoryParkingAMillion) { Soak(Transport::kSharedMemory, 1'000'000, 0); }
// Spinning for less than an exchange takes: the ring falls between spin, park and sleep.
TEST(SoakTest, SharedMemorySpinning) { Soak(Transport::kSharedMemory, 100'000, 3); }
TEST(SoakTest, Inline) { Soak(Transport::kInline, 20'000, 0); }

}  // namespace
}  // namespace isotherm::exchange
