#include "gpu_worker/service/adapter.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {
namespace {

constexpr int64_t kLayers = 2, kFfn = 40, kHot = 10, kBundle = 64;
constexpr int64_t kInterval = 100;

// Two layers whose bundles are all bytes of the neuron's number, and ports that do what the engine's do.
class AdapterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    placement_ = neuron::AllCold(kLayers, kFfn);
    firings_.counts.assign(kLayers, std::vector<uint64_t>(kFfn));
    std::vector<HotLayer> layers;
    for (Layer& layer : layers_) {
      for (int32_t j = 0; j < kHot; ++j) {
        neuron::SetBit(placement_.hot[layers.size()].data(), j);
        layer.ids[j] = j;
        std::fill_n(layer.bundles + j * kBundle, kBundle, static_cast<uint8_t>(j));
      }
      HotLayer& hot = layers.emplace_back();
      hot.bundles = layer.bundles;
      hot.layout.bundle_bytes = kBundle;
      hot.neuron_ids = layer.ids;
      hot.count = kHot;
      hot.hot_mask = &layer.mask;
      layer.mask = placement_.hot[layers.size() - 1].front();
    }
    // Room for three neurons.
    auto hot_set =
        HotSet::Create(placement_, {{&device_, std::move(layers)}}, 3 * (kBundle + sizeof(HotSwap)));
    ASSERT_TRUE(hot_set.ok()) << hot_set.status();
    AdapterPorts ports;
    ports.rows = [this] { return firings_.tokens; };
    ports.firings = [this]() -> absl::StatusOr<Firings> {
      if (!collecting_.ok()) return collecting_;
      return firings_;
    };
    ports.read = [](int64_t, absl::Span<const int32_t> neurons, uint8_t* out) {
      for (size_t k = 0; k < neurons.size(); ++k) {
        std::fill_n(out + k * kBundle, kBundle, static_cast<uint8_t>(neurons[k]));
      }
      return absl::OkStatus();
    };
    ports.follow = [this](const neuron::Placement& next, const std::function<absl::Status()>& commit) {
      if (follows_left_-- == 0) return absl::UnavailableError("the CPU worker is lost");
      EXPECT_EQ(next.epoch, placement_.epoch + 1);
      placement_ = next;
      return commit();
    };
    adapter_ = std::make_unique<Adapter>(placement_, *std::move(hot_set), kInterval, std::move(ports));
  }
  // Serves so many tokens, in each of which these neurons fire in every layer.
  void Serve(int64_t tokens, int32_t first, int32_t count) {
    firings_.tokens += tokens;
    for (std::vector<uint64_t>& layer : firings_.counts) {
      for (int32_t j = first; j < first + count; ++j) layer[j] += tokens;
    }
  }
  // Looks until nothing moves any more; collecting twice within a moment is refused, so it may take several.
  int64_t Settle() {
    int64_t moved = 0;
    for (int quiet = 0; quiet < 3; ++quiet) {
      absl::SleepFor(absl::Milliseconds(20));
      firings_.tokens += kInterval;
      const absl::StatusOr<int64_t> now = adapter_->Look();
      EXPECT_TRUE(now.ok()) << now.status();
      if (*now > 0) quiet = 0;
      moved += *now;
    }
    return moved;
  }
  // What each layer has in its slots and its mask is what the CPU worker was told.
  void CheckHotSet() {
    for (int64_t l = 0; l < kLayers; ++l) {
      EXPECT_EQ(layers_[l].mask, placement_.hot[l].front());
      std::vector<int32_t> ids(layers_[l].ids, layers_[l].ids + kHot);
      for (int64_t k = 0; k < kHot; ++k) {
        for (int64_t i = 0; i < kBundle; ++i) ASSERT_EQ(layers_[l].bundles[k * kBundle + i], ids[k]);
      }
      std::sort(ids.begin(), ids.end());
      EXPECT_EQ(ids, placement_.HotNeurons(l));
    }
  }

  struct Layer {
    alignas(64) uint8_t bundles[kHot * kBundle] = {};
    int32_t ids[kHot] = {};
    uint64_t mask = 0;
  };
  HostDevice device_{{.threads = 2}};
  Layer layers_[kLayers];
  neuron::Placement placement_;
  Firings firings_;
  absl::Status collecting_;
  int follows_left_ = -1;  // -1: for ever
  std::unique_ptr<Adapter> adapter_;
};

TEST_F(AdapterTest, LooksOnceAnIntervalAndFollowsWhatFires) {
  Serve(kInterval - 1, 20, 5);
  EXPECT_EQ(*adapter_->Look(), 0) << "too early";
  Serve(1, 20, 5);
  // A quarter of twenty hot neurons, in batches of three.
  EXPECT_EQ(*adapter_->Look(), 5);
  EXPECT_EQ(placement_.epoch, 3u);
  CheckHotSet();
  EXPECT_EQ(Settle(), 5);
  CheckHotSet();
  for (int64_t l = 0; l < kLayers; ++l) {
    for (int32_t j = 20; j < 25; ++j) EXPECT_TRUE(neuron::TestBit(placement_.hot[l].data(), j));
  }
}

TEST_F(AdapterTest, NothingMovesWhileTheRightNeuronsAreHot) {
  Serve(kInterval, 0, kHot);
  EXPECT_EQ(Settle(), 0);
  EXPECT_EQ(placement_.epoch, 1u);
}

TEST_F(AdapterTest, ALostCpuWorkerLeavesBothSidesWithTheSamePlacement) {
  Serve(kInterval, 20, 5);
  follows_left_ = 1;  // lost between the first batch and the second
  EXPECT_EQ(adapter_->Look().status(), absl::UnavailableError("the CPU worker is lost"));
  EXPECT_EQ(placement_.epoch, 2u);
  CheckHotSet();
  collecting_ = absl::UnavailableError("not connected");
  Serve(kInterval, 20, 5);
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(adapter_->Look().status(), collecting_);

  collecting_ = absl::OkStatus();
  follows_left_ = -1;
  Serve(kInterval, 20, 5);
  EXPECT_EQ(Settle(), 7);
  CheckHotSet();
}

TEST_F(AdapterTest, EndsWhileItsThreadLooks) {
  adapter_->Start();
  adapter_.reset();
}

}  // namespace
}  // namespace isotherm::gpu_worker
