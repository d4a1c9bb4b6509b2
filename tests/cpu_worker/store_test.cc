#include "cpu_worker/store/store.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/kernels/packed_row.h"
#include "tests/cpu_worker/harness.h"

namespace isotherm::cpu_worker {
namespace {

class StoreTest : public ::testing::Test {
 protected:
  std::unique_ptr<model::Model> Open(const testing::TinyLlamaOptions& options) {
    return *model::Model::Open(
        testing::WriteFile(directory_.path() + "/tiny.gguf", testing::TinyLlama(options)));
  }

  TempDirectory directory_;
  base::ThreadPool pool_{{.threads = 2}};
};

absl::Status GoOn(int64_t) { return absl::OkStatus(); }

TEST_F(StoreTest, HoldsEveryNeuronOfEveryLayer) {
  for (gguf::TensorType type : {gguf::TensorType::kF16, gguf::TensorType::kF32}) {
    testing::TinyLlamaOptions options;
    options.layers = 3;
    options.type = type;
    const std::unique_ptr<model::Model> model = Open(options);
    const absl::StatusOr<StorePlan> plan = PlanStore(*model);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const absl::StatusOr<std::unique_ptr<Store>> store = Store::Load(*model, *plan, pool_, GoOn);
    ASSERT_TRUE(store.ok()) << store.status();
    EXPECT_EQ((*store)->bytes(), plan->bytes);
    for (int64_t layer = 0; layer < options.layers; ++layer) {
      const neuron::LayerWeights expected = ReadLayer(*model, layer);
      const neuron::BundleView view = (*store)->View(layer);
      ASSERT_EQ(view.count, options.ffn);
      EXPECT_EQ(view.neuron_ids, nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(view.bundles) % 64, 0u);
      std::vector<float> row(options.hidden);
      for (int64_t j = 0; j < view.count; ++j) {
        const uint8_t* bundle = view.bundles + j * view.layout->bundle_bytes;
        kernels::UnpackRow(view.layout->down_type, view.layout->Down(bundle), options.hidden, row.data());
        for (int64_t h = 0; h < options.hidden; ++h) ASSERT_EQ(row[h], expected.Down(j)[h]);
        kernels::UnpackRow(view.layout->gate_type, view.layout->Gate(bundle), options.hidden, row.data());
        for (int64_t h = 0; h < options.hidden; ++h) ASSERT_EQ(row[h], expected.Gate(j)[h]);
      }
    }
  }
}

TEST_F(StoreTest, ReportsProgressAndTheRequantisationOfDown) {
  testing::TinyLlamaOptions options;
  options.type = gguf::TensorType::kQ4_0;
  const std::unique_ptr<model::Model> model = Open(options);
  const StorePlan plan = *PlanStore(*model);
  std::vector<int64_t> advanced;
  const auto advance = [&](int64_t bytes) {
    advanced.push_back(bytes);
    return absl::OkStatus();
  };
  const absl::StatusOr<std::unique_ptr<Store>> store = Store::Load(*model, plan, pool_, advance);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(advanced, (std::vector<int64_t>{plan.LayerBytes(0), plan.LayerBytes(1)}));
  EXPECT_GT((*store)->down_requantization_error(), 0);
}

TEST_F(StoreTest, LoadingStopsWhenTold) {
  const std::unique_ptr<model::Model> model = Open({});
  int layers = 0;
  const auto stop = [&](int64_t) {
    ++layers;
    return absl::CancelledError("enough");
  };
  EXPECT_TRUE(absl::IsCancelled(Store::Load(*model, *PlanStore(*model), pool_, stop).status()));
  EXPECT_EQ(layers, 1);
}

TEST(CheckMemoryTest, RefusesWithTheNumbers) {
  EXPECT_TRUE(CheckMemory("m.gguf", {2'000'000'000, 100'000'000, 3'000'000'000}).ok());
  const absl::Status status = CheckMemory("m.gguf", {2'000'000'000, 100'000'000, 1'500'000'000});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  for (const std::string part : {"m.gguf", "2.000 GB for the neurons", "1.500 GB are available"}) {
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << status;
  }
}

TEST(CheckMemoryTest, TheLastByteDecides) {
  const MemoryDemand demand{1 << 30, 1 << 20, 0};
  int64_t fits = int64_t{1} << 40, lacks = 0;
  while (fits - lacks > 1) {
    const int64_t middle = (fits + lacks) / 2;
    (CheckMemory("m", {demand.bundle_bytes, demand.workspace_bytes, middle}).ok() ? fits : lacks) = middle;
  }
  EXPECT_GE(fits, demand.bundle_bytes + demand.workspace_bytes);
  EXPECT_LE(fits, demand.bundle_bytes + demand.workspace_bytes + (int64_t{1} << 28));
}

}  // namespace
}  // namespace isotherm::cpu_worker
