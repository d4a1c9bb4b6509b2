#include "gpu_worker/service/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Has memory when asked beforehand, and for the KV cache no more when it comes to it.
class TakenDevice final : public HostDevice {
 public:
  TakenDevice() : HostDevice({.threads = 1}) {}
  absl::StatusOr<Buffer> Allocate(int64_t bytes, MemoryPurpose purpose) override {
    if (purpose != MemoryPurpose::kKvCache) return HostDevice::Allocate(bytes, purpose);
    return absl::ResourceExhaustedError("cannot allocate 4096 bytes: 1024 of 8192 bytes are free");
  }
};

TEST(EngineTest, LoadingWithoutMemorySaysWhatWasWantedAndWhatToDo) {
  const char* const source = std::getenv("ISOTHERM_SOURCE_DIR");
  ASSERT_NE(source, nullptr);
  EngineOptions options;
  options.model_path = std::string(source) + "/models/tales/tales-q8_0.gguf";
  options.profile.save = false;
  EngineDevices devices;
  devices.devices.push_back(std::make_unique<TakenDevice>());
  const absl::Status status = Engine::Load(std::move(options), std::move(devices)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("loading '"), HasSubstr("cannot allocate 4096 bytes: 1024 of 8192 bytes"),
                    HasSubstr("Give it a smaller --vram-budget")));
}

}  // namespace
}  // namespace isotherm::gpu_worker
