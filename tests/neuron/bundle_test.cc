#include "common/neuron/bundle.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "tests/gguf/fixture.h"
#include "tests/gguf/tiny_llama.h"

namespace isotherm::neuron {
namespace {

using gguf::TensorType;
using kernels::WeightType;
using testing::Bytes;
using testing::TinyLlamaOptions;

// A model and the bytes it lies in.
struct OpenModel {
  Bytes bytes;
  std::unique_ptr<model::Model> model;
};

OpenModel Open(Bytes bytes) {
  OpenModel open{std::move(bytes), nullptr};
  absl::StatusOr<std::unique_ptr<gguf::File>> file = gguf::File::Parse(open.bytes, "test.gguf");
  EXPECT_TRUE(file.ok()) << file.status();
  absl::StatusOr<std::unique_ptr<model::Model>> model = model::Model::FromFile(*std::move(file));
  EXPECT_TRUE(model.ok()) << model.status();
  open.model = *std::move(model);
  return open;
}

OpenModel Open(const TinyLlamaOptions& options) { return Open(testing::TinyLlama(options)); }

// The tensor's rows as F32.
std::vector<float> Values(const model::Model& model, const model::TensorRef& tensor) {
  const WeightType type = *PackedWeightType(*tensor.info);
  const uint8_t* data = model.file().Data(*tensor.info).data();
  std::vector<float> values(tensor.rows * tensor.columns);
  for (int64_t row = 0; row < tensor.rows; ++row) {
    kernels::UnpackFileRow(type, data + row * kernels::FileRowBytes(type, tensor.columns), tensor.columns,
                           &values[row * tensor.columns]);
  }
  return values;
}

struct PackedLayer {
  BundleLayout layout;
  PackReport report;
  std::vector<uint8_t> storage;
  uint8_t* bundles = nullptr;

  std::vector<float> Row(WeightType type, int64_t k, int64_t offset) const {
    std::vector<float> row(layout.hidden);
    kernels::UnpackRow(type, bundles + k * layout.bundle_bytes + offset, layout.hidden, row.data());
    return row;
  }
};

PackedLayer Pack(const model::Model& model, int64_t layer, bool all, const std::vector<int32_t>& neurons) {
  PackedLayer packed;
  const absl::StatusOr<BundleLayout> layout = MakeBundleLayout(model, layer);
  EXPECT_TRUE(layout.ok()) << layout.status();
  packed.layout = *layout;
  const int64_t count = all ? model.hyperparameters().ffn : static_cast<int64_t>(neurons.size());
  packed.storage.resize(count * layout->bundle_bytes + 63);
  packed.bundles =
      packed.storage.data() + (64 - reinterpret_cast<uintptr_t>(packed.storage.data()) % 64) % 64;
  base::ThreadPool pool({.threads = 2});
  const absl::StatusOr<PackReport> report =
      PackBundles(model, layer, packed.layout, all, neurons, pool, packed.bundles);
  EXPECT_TRUE(report.ok()) << report.status();
  packed.report = *report;
  return packed;
}

struct TypeCase {
  TensorType type;
  bool transposed_down;
};

class BundleTest : public ::testing::TestWithParam<TypeCase> {};

INSTANTIATE_TEST_SUITE_P(
    Types, BundleTest,
    ::testing::Values(TypeCase{TensorType::kF32, false}, TypeCase{TensorType::kF32, true},
                      TypeCase{TensorType::kF16, false}, TypeCase{TensorType::kF16, true},
                      TypeCase{TensorType::kQ8_0, false}, TypeCase{TensorType::kQ8_0, true},
                      TypeCase{TensorType::kQ4_0, false}, TypeCase{TensorType::kQ4_0, true}),
    [](const auto& info) {
      return gguf::TensorTypeName(info.param.type) + (info.param.transposed_down ? "_down_by_neuron" : "");
    });

TEST_P(BundleTest, RowsHoldWhatTheFileHolds) {
  TinyLlamaOptions options;
  options.type = GetParam().type;
  options.transposed_down = GetParam().transposed_down;
  const OpenModel open = Open(options);
  const bool requantised =
      !options.transposed_down && options.type != TensorType::kF32 && options.type != TensorType::kF16;
  for (int64_t layer = 0; layer < options.layers; ++layer) {
    const model::Layer& tensors = open.model->layers()[layer];
    const std::vector<float> gate = Values(*open.model, tensors.gate);
    const std::vector<float> up = Values(*open.model, tensors.up);
    const std::vector<float> down = Values(*open.model, tensors.down);
    const std::vector<int32_t> some = {0, 5, 63, 64, 95};
    for (bool all : {true, false}) {
      const PackedLayer packed = Pack(*open.model, layer, all, some);
      const BundleLayout& layout = packed.layout;
      EXPECT_EQ(layout.bundle_bytes % 64, 0);
      EXPECT_EQ(layout.down_type == WeightType::kQ8_0, requantised || options.type == TensorType::kQ8_0);
      if (!requantised) {
        EXPECT_EQ(packed.report.down_requantization_error, 0);
      }
      double error = 0, weight = 0;
      const int64_t count = all ? options.ffn : static_cast<int64_t>(some.size());
      for (int64_t k = 0; k < count; ++k) {
        const int64_t neuron = all ? k : some[k];
        const std::vector<float> packed_gate = packed.Row(layout.gate_type, k, 0);
        const std::vector<float> packed_up = packed.Row(layout.up_type, k, layout.up_offset);
        const std::vector<float> packed_down = packed.Row(layout.down_type, k, layout.down_offset);
        for (int64_t h = 0; h < options.hidden; ++h) {
          ASSERT_EQ(packed_gate[h], gate[neuron * options.hidden + h]);
          ASSERT_EQ(packed_up[h], up[neuron * options.hidden + h]);
          const float expected =
              options.transposed_down ? down[neuron * options.hidden + h] : down[h * options.ffn + neuron];
          if (requantised) {
            error += std::pow(static_cast<double>(packed_down[h]) - expected, 2);
            weight += std::pow(static_cast<double>(expected), 2);
          } else {
            ASSERT_EQ(packed_down[h], expected);
          }
        }
      }
      if (requantised) {
        EXPECT_NEAR(packed.report.down_requantization_error, std::sqrt(error / weight), 1e-9);
        EXPECT_GT(packed.report.down_requantization_error, 0);
        EXPECT_LT(packed.report.down_requantization_error, 0.01);
      }
    }
  }
}

// OPT's form: the bias follows the up row, and there is no gate.
TEST(BundleTest, UngatedBundlesHoldUpBiasAndDown) {
  const auto opened = model::Model::Open(testing::FixturePath("opt-relu-f32.gguf"));
  ASSERT_TRUE(opened.ok()) << opened.status();
  const model::Model& model = **opened;
  const model::Layer& tensors = model.layers().front();
  const std::vector<float> up = Values(model, tensors.up);
  const std::vector<float> bias = Values(model, tensors.up_bias);
  const std::vector<float> down = Values(model, tensors.down);
  const int64_t hidden = model.hyperparameters().hidden, ffn = model.hyperparameters().ffn;
  const std::vector<int32_t> some = {0, 1, 64, 127};
  const PackedLayer packed = Pack(model, 0, false, some);
  const BundleLayout& layout = packed.layout;
  EXPECT_FALSE(layout.gated);
  EXPECT_EQ(layout.bundle_bytes, 2 * 4 * hidden + 64);
  for (size_t k = 0; k < some.size(); ++k) {
    const std::vector<float> packed_up = packed.Row(layout.gate_type, k, 0);
    const std::vector<float> packed_down = packed.Row(layout.down_type, k, layout.down_offset);
    for (int64_t h = 0; h < hidden; ++h) {
      ASSERT_EQ(packed_up[h], up[some[k] * hidden + h]);
      ASSERT_EQ(packed_down[h], down[h * ffn + some[k]]);
    }
    EXPECT_EQ(layout.Bias(packed.bundles + k * layout.bundle_bytes), bias[some[k]]);
  }
}

TEST(BundleTest, NoNeuronsNeedNothing) {
  const OpenModel open = Open(TinyLlamaOptions{});
  EXPECT_EQ(Pack(*open.model, 0, false, {}).report.down_requantization_error, 0);
}

TEST(BundleTest, RefusesNeuronsOutOfOrderOrRange) {
  const OpenModel open = Open(TinyLlamaOptions{});
  base::ThreadPool pool({.threads = 1});
  const BundleLayout layout = *MakeBundleLayout(*open.model, 0);
  std::vector<uint8_t> out(8 * layout.bundle_bytes);
  for (const std::vector<int32_t>& neurons : {std::vector<int32_t>{-1}, {96}, {3, 3}, {4, 2}}) {
    const absl::Status status =
        PackBundles(*open.model, 0, layout, false, neurons, pool, out.data()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  }
}

TEST(BundleTest, RefusesAHiddenSizeThatBlocksDoNotDivide) {
  TinyLlamaOptions options;
  options.hidden = 48;
  OpenModel open = Open(
      testing::TinyLlamaBuilder(options)
          .RemoveTensor("blk.1.ffn_down.weight")
          .AddTensor("blk.1.ffn_down.weight", {96, 48}, TensorType::kQ8_0, std::vector<float>(96 * 48, 0.5f))
          .Build());
  EXPECT_TRUE(MakeBundleLayout(*open.model, 0).ok());
  const absl::Status status = MakeBundleLayout(*open.model, 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(status.message()).find("blk.1.ffn_down.weight"), std::string::npos) << status;
}

TEST(BundleTest, NamesATensorOfAnotherType) {
  gguf::TensorInfo tensor;
  tensor.name = "blk.7.ffn_up.weight";
  tensor.type = TensorType::kQ2_K;
  const absl::Status status = PackedWeightType(tensor).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(std::string(status.message()).find("blk.7.ffn_up.weight"), std::string::npos) << status;
  EXPECT_NE(std::string(status.message()).find("Q2_K"), std::string::npos) << status;
}

}  // namespace
}  // namespace isotherm::neuron
