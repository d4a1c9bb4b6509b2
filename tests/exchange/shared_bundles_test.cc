#include "common/exchange/shared_bundles.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "common/base/unique_fd.h"
#include "tests/exchange/harness.h"

namespace isotherm::exchange {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kBytes = 3 * 4096;

class SharedBundlesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(file_.valid());
    ASSERT_EQ(ftruncate(file_.get(), kBytes), 0);
    ASSERT_EQ(pwrite(file_.get(), "neurons", 7, 4096), 7);
  }
  void Seal() {
    ASSERT_EQ(fcntl(file_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE), 0);
  }
  worker::v1::SharedBundles Offer() const { return *OfferBundles({file_.get(), kBytes, {0, 4096}}); }

  const base::UniqueFd file_{memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
};

TEST_F(SharedBundlesTest, ShowsWhatThePeerHas) {
  Seal();
  const auto bundles = SharedBundles::Map(file_.get(), Offer(), 2);
  ASSERT_TRUE(bundles.ok()) << bundles.status();
  EXPECT_EQ((*bundles)->bytes(), kBytes);
  EXPECT_EQ((*bundles)->Layer(0, kBytes), (*bundles)->data());
  EXPECT_EQ(std::memcmp((*bundles)->Layer(1, 8192), "neurons", 7), 0);
  EXPECT_EQ((*bundles)->Layer(1, 8193), nullptr);
}

TEST_F(SharedBundlesTest, RefusesAFileThatCouldShrink) {
  const auto bundles = SharedBundles::Map(file_.get(), Offer(), 2);
  EXPECT_EQ(bundles.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(bundles.status().message()), HasSubstr("not sealed"));
}

TEST_F(SharedBundlesTest, RefusesWhatIsNotTheOfferedFile) {
  Seal();
  struct Case {
    const char* message;
    void (*spoil)(worker::v1::SharedBundles&);
  };
  for (const Case& c :
       {Case{"another file", [](auto& offer) { offer.set_inode(offer.inode() + 1); }},
        Case{"another file", [](auto& offer) { offer.set_device(offer.device() + 1); }},
        Case{"announced were", [](auto& offer) { offer.set_bytes(kBytes - 4096); }},
        Case{"shares 1 layers", [](auto& offer) { offer.mutable_layer_offsets()->Truncate(1); }}}) {
    worker::v1::SharedBundles offer = Offer();
    c.spoil(offer);
    const auto bundles = SharedBundles::Map(file_.get(), offer, 2);
    ASSERT_FALSE(bundles.ok()) << c.message;
    EXPECT_THAT(std::string(bundles.status().message()), HasSubstr(c.message));
  }
}

TEST_F(SharedBundlesTest, LayersOutsideTheFileAreNoLayers) {
  Seal();
  for (const int64_t offset : {int64_t{-64}, int64_t{32}, kBytes, kBytes + 64, INT64_MAX - 63}) {
    worker::v1::SharedBundles offer = Offer();
    offer.set_layer_offsets(1, offset);
    const auto bundles = SharedBundles::Map(file_.get(), offer, 2);
    ASSERT_TRUE(bundles.ok()) << bundles.status();
    EXPECT_EQ((*bundles)->Layer(1, 64), nullptr) << offset;
  }
}

TEST_F(SharedBundlesTest, ComeWithAnExchangeOverSharedMemory) {
  Seal();
  const TempDirectory directory("/dev/shm");
  const std::string socket = directory.path() + "/socket";
  const Geometry geometry = SmallGeometry();
  ServerPolicy policy = PolicyFor(geometry);
  policy.bundles = {file_.get(), kBytes, std::vector<int64_t>(geometry.layers, 4096)};
  FakeExecutor executor(geometry);
  const TestServer server(socket, {.shm_directory = directory.path()}, policy, &executor);
  const auto stub = MakeStub(socket);
  for (const Transport transport : {Transport::kSharedMemory, Transport::kInline}) {
    const auto channel = Connect(stub.get(), ClientFor(geometry, transport, directory.path()));
    ASSERT_TRUE(channel.ok()) << channel.status();
    const SharedBundles* const bundles = (*channel)->bundles();
    ASSERT_EQ(bundles != nullptr, transport == Transport::kSharedMemory);
    if (bundles == nullptr) continue;
    EXPECT_EQ(std::memcmp(bundles->Layer(0, 4096), "neurons", 7), 0);
  }
}

}  // namespace
}  // namespace isotherm::exchange
