#include "common/neuron/gpu_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/gguf/gguf_builder.h"
#include "tests/gguf/tiny_llama.h"

namespace isotherm::neuron {
namespace {

using ::isotherm::testing::Bytes;
using ::isotherm::testing::GgufBuilder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kLayers = 2, kNeurons = 70;
// As PowerInfer numbers I32; the builder writes the number it is given.
constexpr auto kPowerInferI32 = static_cast<gguf::TensorType>(18);

using Integers = std::vector<int32_t>;

Bytes Encode(const Integers& values) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
  return Bytes(bytes, bytes + values.size() * sizeof(int32_t));
}

Integers Marks(const Integers& hot) {
  Integers marks(kNeurons, 0);
  for (const int32_t neuron : hot) marks[neuron] = 1;
  return marks;
}

class GpuIndexTest : public ::testing::Test {
 protected:
  ~GpuIndexTest() override { unlink(path_.c_str()); }

  static GgufBuilder Header() {
    GgufBuilder builder;
    builder.SetMagic("PWRI")
        .Add("general.architecture", "generic.gpu_index")
        .Add("generic.gpu_index.block_count", uint32_t{kLayers})
        .Add("split.vram_capacity", uint64_t{1} << 33);
    return builder;
  }
  static void AddLayer(GgufBuilder& builder, int layer, const Integers& marks, const Integers& bucket) {
    const std::string prefix = "blk." + std::to_string(layer);
    builder.AddTensor(prefix + ".gpu_idx", {marks.size()}, kPowerInferI32, Encode(marks))
        .AddTensor(prefix + ".gpu_bucket", {bucket.size()}, kPowerInferI32, Encode(bucket));
  }
  absl::StatusOr<Placement> Read(const Bytes& bytes) {
    return ReadGpuIndex(testing::WriteFile(path_, bytes), kLayers, kNeurons);
  }
  // The second layer of a file that is otherwise sound.
  void ExpectRefused(const Integers& marks, const Integers& bucket, const std::string& words) {
    GgufBuilder builder = Header();
    AddLayer(builder, 0, Marks({1}), {1});
    AddLayer(builder, 1, marks, bucket);
    const absl::Status status = Read(builder.Build()).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  }

  const std::string path_ = ::testing::TempDir() + std::to_string(getpid()) + ".gpuidx";
};

TEST_F(GpuIndexTest, HotNeuronsOfEachLayer) {
  GgufBuilder builder = Header();
  AddLayer(builder, 0, Marks({0, 5, 64, 69}), {0, 5, 64, 69});
  AddLayer(builder, 1, Marks({}), {});
  const absl::StatusOr<Placement> placement = Read(builder.Build());
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_EQ(placement->epoch, 1u);
  EXPECT_EQ(placement->ffn, kNeurons);
  ASSERT_EQ(placement->layers(), kLayers);
  EXPECT_THAT(placement->HotNeurons(0), ElementsAre(0, 5, 64, 69));
  EXPECT_THAT(placement->HotNeurons(1), IsEmpty());
}

TEST_F(GpuIndexTest, TheOrderOfTheTensorsCountsAndNotTheirNames) {
  GgufBuilder builder = Header();
  AddLayer(builder, 7, Marks({3}), {3});
  AddLayer(builder, 5, Marks({4, 6}), {4, 6});
  const absl::StatusOr<Placement> placement = Read(builder.Build());
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_THAT(placement->HotNeurons(0), ElementsAre(3));
  EXPECT_THAT(placement->HotNeurons(1), ElementsAre(4, 6));
}

TEST_F(GpuIndexTest, BucketsThatDisagreeAreRefused) {
  for (const Integers& bucket : {Integers{}, Integers{2}, Integers{2, 4, 6}, Integers{4, 2}, Integers{2, 2},
                                 Integers{2, 5}, Integers{2, -4}, Integers{2, 1 << 30}}) {
    ExpectRefused(Marks({2, 4}), bucket, "does not list, ascending, the 2 neurons");
  }
}

TEST_F(GpuIndexTest, MarksOtherThanZeroAndOneAndOtherSizesAreRefused) {
  Integers marks = Marks({2});
  marks[69] = 2;
  ExpectRefused(marks, {2}, "marks neuron 69 with 2");
  marks[69] = -1;
  ExpectRefused(marks, {2}, "marks neuron 69 with -1");
  ExpectRefused(Integers(64, 0), {}, "is of 64 neurons, a layer of the model has 70");
}

TEST_F(GpuIndexTest, OtherFilesAreRefused) {
  GgufBuilder plain = Header().SetMagic("GGUF");
  EXPECT_THAT(Read(plain.Build()).status().ToString(), HasSubstr("no index file of PowerInfer"));
  GgufBuilder model = Header().Add("general.architecture", "llama");
  model.Remove("general.architecture").Add("general.architecture", "llama");
  EXPECT_THAT(Read(model.Build()).status().ToString(), HasSubstr("no index file of PowerInfer"));
  GgufBuilder deep = Header();
  deep.Remove("generic.gpu_index.block_count").Add("generic.gpu_index.block_count", uint32_t{3});
  EXPECT_THAT(Read(deep.Build()).status().ToString(), HasSubstr("is of 3 layers, the model has 2"));
  GgufBuilder half = Header();
  AddLayer(half, 0, Marks({2}), {2});
  EXPECT_THAT(Read(half.Build()).status().ToString(), HasSubstr("2 tensors where 2 layers need two each"));
  GgufBuilder floats = Header();
  AddLayer(floats, 0, Marks({2}), {2});
  floats.AddTensor("a", {kNeurons}, gguf::TensorType::kF32, std::vector<float>(kNeurons))
      .AddTensor("b", {1}, kPowerInferI32, Encode({2}));
  EXPECT_THAT(Read(floats.Build()).status().ToString(), HasSubstr("no list of 32-bit integers"));
  EXPECT_EQ(ReadGpuIndex("/nonexistent.gpuidx", 1, 64).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(GpuIndexTest, TruncatedFilesAreRefusedAtEveryLength) {
  GgufBuilder builder = Header();
  AddLayer(builder, 0, Marks({2}), {2});
  AddLayer(builder, 1, Marks({5, 6}), {5, 6});
  const Bytes whole = builder.Build();
  for (size_t length = 0; length + 32 < whole.size(); length += 11) {
    EXPECT_FALSE(Read(Bytes(whole.begin(), whole.begin() + static_cast<int64_t>(length))).ok()) << length;
  }
}

}  // namespace
}  // namespace isotherm::neuron
