// Single operators of the test device against F64 references and against the CPU kernels: every weight type,
// awkward sizes, few rows (each weight read once) and many (tiles).

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "common/kernels/ops.h"
#include "common/kernels/sketch.h"
#include "common/kernels/tolerance.h"
#include "common/neuron/mask.h"
#include "tests/gpu_worker/runner_harness.h"
#include "tests/kernels/test_support.h"

namespace isotherm::gpu_worker {
namespace {

using kernels::WeightType;

constexpr int64_t kMostRows = 64;
constexpr int64_t kFfn = 200;
constexpr int64_t kHidden = 544;  // more than one panel of the sketch, and no power of two

class OperatorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto device = MakeTestDevice(2, /*graphs=*/false);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    FfnParameters ffn;
    ffn.hidden = kHidden;
    ffn.ffn = kFfn;
    ASSERT_TRUE(device_->Configure(ffn, /*layers=*/1, kMostRows).ok());
  }

  template <typename T>
  Buffer Upload(const T* values, int64_t count) {
    const auto bytes = count * static_cast<int64_t>(sizeof(T));
    auto buffer = device_->Allocate(bytes, MemoryPurpose::kWorkspace);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_TRUE(
        device_->Write(*buffer, 0, bytes, [&](uint8_t* out) { std::memcpy(out, values, bytes); }).ok());
    return *std::move(buffer);
  }
  Buffer Upload(const std::vector<float>& values) {
    return Upload(values.data(), static_cast<int64_t>(values.size()));
  }
  // Full of NaN, so that what is not written shows.
  Buffer Poisoned(int64_t count) { return Upload(std::vector<float>(count, NAN)); }

  std::vector<float> Download(const Buffer& buffer, int64_t count) {
    std::vector<float> values(count);
    EXPECT_TRUE(device_->Read(buffer.as<float>(), count, values.data()).ok());
    return values;
  }

  // A pass of `rows` rows of one sequence from `position` on, whose blocks lie in reverse.
  PassInput Pass(int64_t rows, int64_t position = 0, int64_t block_size = 16) {
    PassInput pass;
    pass.step = 1;
    for (int64_t r = 0; r < rows; ++r) {
      pass.tokens.push_back(static_cast<uint32_t>((7 * r + 3) % kFfn));
      pass.positions.push_back(static_cast<int32_t>(position + r));
      pass.table_offsets.push_back(0);
    }
    const int64_t blocks = (position + rows + block_size - 1) / block_size;
    for (int64_t b = 0; b < blocks; ++b) pass.block_tables.push_back(static_cast<uint32_t>(blocks - 1 - b));
    return pass;
  }

  std::unique_ptr<Device> device_;
};

TEST_F(OperatorsTest, MatMulIsWithinTheToleranceForEveryType) {
  for (const WeightType type : kernels::kAllTypes) {
    const int64_t block = kernels::BlockColumns(type);
    for (const int64_t columns :
         {block, 3 * block, std::max<int64_t>(33, 33 / block * block), 1024 + block}) {
      if (columns % block != 0) continue;
      constexpr int64_t kOutputs = 37;
      const int64_t stride = kernels::PackedRowBytes(type, columns);
      const kernels::RandomRows weights(type, kOutputs, columns, stride, 11);
      const Buffer packed = Upload(weights.packed.data(), kOutputs * stride);
      const std::vector<float> bias = kernels::RandomFloats(kOutputs, 5);
      const Buffer bias_on_device = Upload(bias);
      for (const int64_t rows : {1, 2, 5, 16, 17, 64}) {
        const std::vector<float> x = kernels::RandomFloats(rows * columns, 3);
        const Buffer input = Upload(x);
        const Buffer output = Poisoned(rows * kOutputs);
        device_->BeginPass(Pass(rows));
        device_->MatMul({packed.data(), type, kOutputs, columns, stride}, bias_on_device.as<float>(),
                        input.as<float>(), rows, output.as<float>());
        ASSERT_TRUE(device_->EndPass().ok());
        const std::vector<float> y = Download(output, rows * kOutputs);
        for (int64_t i = 0; i < rows * kOutputs; ++i) {
          const auto& row = weights.values[i % kOutputs];
          const float* input_row = x.data() + i / kOutputs * columns;
          const double exact = kernels::ReferenceDot(row, input_row) + bias[i % kOutputs];
          // The minimum of Q4_K is subtracted with a rounding of its own.
          const double bound = 2 * kernels::DotTolerance(type, columns + 1, kernels::Norm(row) + 1,
                                                         kernels::Norm(input_row, columns) + 1);
          ASSERT_TRUE(kernels::Within(y[i], exact, bound))
              << kernels::WeightTypeName(type) << " columns " << columns << " rows " << rows << " at " << i
              << ": " << y[i] << " instead of " << exact;
        }
      }
    }
  }
}

// Matrices with rows enough to fill a GPU may take another way than those above. Of 61 different rows, so
// that the reference costs little.
TEST_F(OperatorsTest, MatMulOfManyRowsIsWithinTheTolerance) {
  constexpr int64_t kOutputs = 2501, kDistinct = 61, kMostRows = 17;
  for (const WeightType type : kernels::kAllTypes) {
    const int64_t columns = 2048 + kernels::BlockColumns(type);
    const int64_t stride = kernels::PackedRowBytes(type, columns);
    const kernels::RandomRows weights(type, kDistinct, columns, stride, 11);
    std::vector<uint8_t> packed(kOutputs * stride);
    for (int64_t i = 0; i < kOutputs; ++i) {
      std::copy_n(weights.packed.data() + i % kDistinct * stride, stride, packed.data() + i * stride);
    }
    const Buffer matrix = Upload(packed.data(), kOutputs * stride);
    const std::vector<float> x = kernels::RandomFloats(kMostRows * columns, 3);
    const Buffer input = Upload(x);
    std::vector<double> exact, bounds;
    for (int64_t row = 0; row < kMostRows; ++row) {
      const float* const input_row = x.data() + row * columns;
      for (const auto& values : weights.values) {
        exact.push_back(kernels::ReferenceDot(values, input_row));
        bounds.push_back(2 * kernels::DotTolerance(type, columns, kernels::Norm(values),
                                                   kernels::Norm(input_row, columns)));
      }
    }
    std::vector<float> alone;
    for (const int64_t rows : {1, 3, 8, 17}) {
      const Buffer output = Poisoned(rows * kOutputs);
      device_->BeginPass(Pass(rows));
      device_->MatMul({matrix.data(), type, kOutputs, columns, stride}, nullptr, input.as<float>(), rows,
                      output.as<float>());
      ASSERT_TRUE(device_->EndPass().ok());
      const std::vector<float> y = Download(output, rows * kOutputs);
      for (int64_t i = 0; i < rows * kOutputs; ++i) {
        const int64_t at = i / kOutputs * kDistinct + i % kOutputs % kDistinct;
        ASSERT_TRUE(kernels::Within(y[i], exact[at], bounds[at]))
            << kernels::WeightTypeName(type) << " rows " << rows << " at " << i << ": " << y[i]
            << " instead of " << exact[at];
      }
      if (rows == 1) alone = y;
      if (rows <= 16) {
        EXPECT_TRUE(std::equal(alone.begin(), alone.end(), y.begin()))
            << kernels::WeightTypeName(type) << ": what shares a pass of " << rows
            << " rows changes the first";
      }
    }
  }
}

// One launch for several matrices must not mix up their rows; more rows than warps, and one of another type.
TEST_F(OperatorsTest, SeveralProductsEqualTheSameOnesAlone) {
  constexpr int64_t kColumns = 96;
  const struct {
    WeightType type;
    int64_t outputs;
  } matrices[] = {
      {WeightType::kF16, 4301}, {WeightType::kF16, 1}, {WeightType::kF16, 70}, {WeightType::kQ8_0, 35}};
  std::vector<Buffer> buffers;
  std::vector<Product> products;
  for (const auto& [type, outputs] : matrices) {
    const int64_t stride = kernels::PackedRowBytes(type, kColumns);
    const kernels::RandomRows weights(type, outputs, kColumns, stride, outputs);
    buffers.push_back(Upload(weights.packed.data(), outputs * stride));
    const uint8_t* const data = buffers.back().data();
    buffers.push_back(Upload(kernels::RandomFloats(outputs, 4)));
    const float* const bias = outputs == 70 ? nullptr : buffers.back().as<float>();
    products.push_back({{data, type, outputs, kColumns, stride}, bias, nullptr});
  }
  for (const size_t count : {size_t{1}, size_t{2}, size_t{3}, size_t{4}}) {
    for (const int64_t rows : {1, 3, 8, 17}) {
      const Buffer x = Upload(kernels::RandomFloats(rows * kColumns, 6));
      std::vector<Buffer> together, alone;
      device_->BeginPass(Pass(rows));
      for (size_t i = 0; i < count; ++i) {
        together.push_back(Poisoned(rows * matrices[i].outputs));
        alone.push_back(Poisoned(rows * matrices[i].outputs));
        products[i].y = together[i].as<float>();
        device_->MatMul(products[i].weight, products[i].bias, x.as<float>(), rows, alone[i].as<float>());
      }
      device_->MatMuls(absl::MakeSpan(products).first(count), x.as<float>(), rows);
      ASSERT_TRUE(device_->EndPass().ok());
      for (size_t i = 0; i < count; ++i) {
        const int64_t values = rows * matrices[i].outputs;
        EXPECT_EQ(Download(together[i], values), Download(alone[i], values))
            << "matrix " << i << " of " << count << ", rows " << rows;
      }
    }
  }
}

TEST_F(OperatorsTest, AddAndNormalizeEqualsAddThenNormalize) {
  const Buffer weight = Upload(kernels::RandomFloats(kHidden, 1)),
               bias = Upload(kernels::RandomFloats(kHidden, 2));
  for (const model::NormKind kind : {model::NormKind::kRms, model::NormKind::kLayer}) {
    for (const int64_t rows : {1, 5}) {
      const int64_t count = rows * kHidden;
      const Norm norm{kind, 1e-5f, weight.as<float>(),
                      kind == model::NormKind::kRms ? nullptr : bias.as<float>()};
      const Buffer x = Upload(kernels::RandomFloats(count, 3));
      const Buffer one = Upload(kernels::RandomFloats(count, 4)),
                   other = Upload(kernels::RandomFloats(count, 4));
      const Buffer out = Poisoned(count), expected = Poisoned(count);
      const Term term{x.as<float>(), rows == 1 ? nullptr : bias.as<float>(), 0.5f};
      device_->BeginPass(Pass(rows));
      device_->AddAndNormalize(term, norm, rows, kHidden, one.as<float>(), out.as<float>());
      device_->Add(term.x, term.bias, term.scale, rows, kHidden, other.as<float>());
      device_->Normalize(norm, other.as<float>(), rows, kHidden, expected.as<float>());
      ASSERT_TRUE(device_->EndPass().ok());
      EXPECT_EQ(Download(one, count), Download(other, count)) << rows;
      EXPECT_EQ(Download(out, count), Download(expected, count)) << rows;
    }
  }
}

// Widths of four values at a time and of one, those that registers hold and wider ones.
TEST_F(OperatorsTest, AddAndNormalizeIsWithinTheToleranceAtEveryWidth) {
  constexpr int64_t kRows = 3;
  constexpr float kScale = 0.5f, kEpsilon = 1e-5f;
  for (const int64_t n : {1, 7, 768, 4102, 8192, 20480}) {
    const int64_t count = kRows * n;
    const std::vector<float> terms = kernels::RandomFloats(count, 1),
                             values = kernels::RandomFloats(count, 2), weights = kernels::RandomFloats(n, 3);
    const Buffer x = Upload(terms), y = Upload(values), weight = Upload(weights), out = Poisoned(count);
    device_->BeginPass(Pass(kRows));
    device_->AddAndNormalize({x.as<float>(), nullptr, kScale},
                             {model::NormKind::kRms, kEpsilon, weight.as<float>()}, kRows, n, y.as<float>(),
                             out.as<float>());
    ASSERT_TRUE(device_->EndPass().ok());
    const std::vector<float> sums = Download(y, count), normed = Download(out, count);
    // A sum of n squares in any order, its root and three products: so many roundings, each of half of this.
    const double tolerance = (static_cast<double>(n) + 8) * std::numeric_limits<float>::epsilon() / 2;
    for (int64_t row = 0; row < kRows; ++row) {
      double squares = 0;
      for (int64_t i = row * n; i < (row + 1) * n; ++i) {
        ASSERT_NEAR(sums[i], values[i] + kScale * double{terms[i]}, std::abs(sums[i]) * 1e-6 + 1e-7) << n;
        squares += double{sums[i]} * sums[i];
      }
      const double factor = 1 / std::sqrt(squares / static_cast<double>(n) + kEpsilon);
      for (int64_t i = 0; i < n; ++i) {
        const double expected = sums[row * n + i] * factor * weights[i];
        ASSERT_NEAR(normed[row * n + i], expected, std::abs(expected) * tolerance)
            << "width " << n << ", row " << row << ", column " << i;
      }
    }
  }
}

TEST_F(OperatorsTest, EmbedUnpacksAndAddsPositions) {
  for (const WeightType type : kernels::kAllTypes) {
    const int64_t columns = 2 * std::max<int64_t>(kernels::BlockColumns(type), 20);
    const int64_t stride = kernels::PackedRowBytes(type, columns);
    const kernels::RandomRows tokens(type, kFfn, columns, stride, 2), positions(type, 50, columns, stride, 3);
    const Buffer token_rows = Upload(tokens.packed.data(), kFfn * stride);
    const Buffer position_rows = Upload(positions.packed.data(), 50 * stride);
    constexpr int64_t kRows = 9;
    const Buffer output = Poisoned(kRows * columns);
    const PassInput pass = Pass(kRows, 4);
    device_->BeginPass(pass);
    device_->Embed({{token_rows.data(), type, kFfn, columns, stride},
                    2.0f,
                    {position_rows.data(), type, 50, columns, stride},
                    2},
                   output.as<float>());
    ASSERT_TRUE(device_->EndPass().ok());
    const std::vector<float> x = Download(output, kRows * columns);
    for (int64_t i = 0; i < kRows * columns; ++i) {
      const double expected = 2 * tokens.values[pass.tokens[i / columns]][i % columns] +
                              positions.values[pass.positions[i / columns] + 2][i % columns];
      ASSERT_NEAR(x[i], expected, 1e-6 * (1 + std::abs(expected)))
          << kernels::WeightTypeName(type) << " at " << i;
    }
  }
}

TEST_F(OperatorsTest, SketchScoresAndMasksEqualTheCpuKernels) {
  const int64_t stride = kernels::SketchRowBytes(kHidden);
  std::vector<uint8_t> sketch(kFfn * stride);
  const std::vector<float> gate = kernels::RandomFloats(kFfn * kHidden, 8);
  for (int64_t j = 0; j < kFfn; ++j) kernels::SketchRow(&gate[j * kHidden], kHidden, &sketch[j * stride]);
  const Buffer rows_on_device = Upload(sketch.data(), static_cast<int64_t>(sketch.size()));
  const std::vector<float> bias = kernels::RandomFloats(kFfn, 21);
  const Buffer bias_on_device = Upload(bias);
  const int64_t words = neuron::MaskWords(kFfn);
  for (const int64_t rows : {1, 3, 11}) {
    const std::vector<float> x = kernels::RandomFloats(rows * kHidden, 9);
    const Buffer input = Upload(x), scores = Poisoned(rows * kFfn), masks = Poisoned(2 * rows * words);
    device_->BeginPass(Pass(rows));
    device_->SketchScores(rows_on_device.data(), input.as<float>(), rows, scores.as<float>());
    device_->MaskFromScores(scores.as<float>(), bias_on_device.as<float>(), 0.5f, /*strict=*/true, rows,
                            masks.as<uint64_t>());
    ASSERT_TRUE(device_->EndPass().ok());
    const std::vector<float> computed = Download(scores, rows * kFfn),
                             raw = Download(masks, 2 * rows * words);
    std::vector<uint64_t> bits(rows * words);
    std::memcpy(bits.data(), raw.data(), bits.size() * sizeof(uint64_t));
    kernels::Bytes quantised(kernels::SketchInputBytes(kHidden));
    std::vector<float> expected(kFfn);
    for (int64_t r = 0; r < rows; ++r) {
      kernels::SketchInput(&x[r * kHidden], kHidden, quantised.data());
      kernels::SketchScores(sketch.data(), kFfn, quantised.data(), kHidden, expected.data());
      for (int64_t j = 0; j < kFfn; ++j) {
        ASSERT_EQ(computed[r * kFfn + j], expected[j]) << "row " << r << " neuron " << j;
        ASSERT_EQ(neuron::TestBit(&bits[r * words], j), expected[j] + bias[j] > 0.5f);
      }
      EXPECT_EQ(bits[r * words + words - 1] >> (kFfn % 64), 0u);
    }
  }
}

// Contexts on both sides of every split, query heads in groups of one, two and six.
TEST_F(OperatorsTest, AttentionEqualsTheCpuKernel) {
  struct Heads {
    int64_t query, kv, dim;
  };
  for (const Heads& heads : {Heads{4, 4, 64}, Heads{4, 2, 32}, Heads{12, 2, 96}, Heads{3, 1, 160}}) {
    for (const kernels::KvType type :
         {kernels::KvType::kF16, kernels::KvType::kQ8_0, kernels::KvType::kF32}) {
      kernels::PagedKv kv;
      kv.type = type;
      kv.kv_heads = heads.kv;
      kv.head_dim = heads.dim;
      kv.block_size = 16;
      kv.block_bytes = heads.kv * 16 * kernels::KvRowBytes(type, heads.dim);
      for (const int64_t length : {1, 63, 64, 65, 300}) {
        const int64_t blocks = (length + 15) / 16;
        std::vector<uint8_t> k(blocks * kv.block_bytes), v(blocks * kv.block_bytes);
        const Buffer device_k = Upload(k.data(), static_cast<int64_t>(k.size()));
        const Buffer device_v = Upload(v.data(), static_cast<int64_t>(v.size()));
        kernels::PagedKv host_kv = kv, device_kv = kv;
        host_kv.k = k.data();
        host_kv.v = v.data();
        device_kv.k = device_k.data();
        device_kv.v = device_v.data();
        const int64_t width = heads.query * heads.dim, key = heads.kv * heads.dim;
        // Written in pieces of at most kMostRows rows; the last row asks.
        std::vector<float> answer;
        for (int64_t first = 0; first < length; first += kMostRows) {
          const int64_t rows = std::min(kMostRows, length - first);
          const std::vector<float> q = kernels::RandomFloats(rows * width, 1 + first);
          const std::vector<float> new_k = kernels::RandomFloats(rows * key, 2 + first);
          const std::vector<float> new_v = kernels::RandomFloats(rows * key, 3 + first);
          const Buffer queries = Upload(q), keys = Upload(new_k), values = Upload(new_v);
          const Buffer output = Poisoned(rows * width);
          PassInput pass = Pass(rows, first);
          pass.block_tables.clear();
          for (int64_t b = 0; b < blocks; ++b)
            pass.block_tables.push_back(static_cast<uint32_t>(blocks - 1 - b));
          device_->BeginPass(pass);
          device_->RopeAndWriteKv({}, device_kv, heads.query, queries.as<float>(), keys.as<float>(),
                                  values.as<float>());
          device_->Attention(device_kv, queries.as<float>(), heads.query, 0.125f, output.as<float>());
          ASSERT_TRUE(device_->EndPass().ok());
          answer = Download(output, rows * width);
          for (int64_t r = 0; r < rows; ++r) {
            kernels::WriteKv(host_kv, pass.block_tables.data(), first + r, &new_k[r * key], &new_v[r * key]);
          }
          std::vector<float> expected(width), scratch(length * 16 + 2 * heads.dim + 64);
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t h = 0; h < heads.kv; ++h) {
              const int64_t group = heads.query / heads.kv;
              kernels::Attend(host_kv, pass.block_tables.data(), first + r + 1, &q[r * width], heads.query,
                              h * group, (h + 1) * group, 0.125f, scratch.data(), expected.data());
            }
            for (int64_t i = 0; i < width; ++i) {
              ASSERT_NEAR(answer[r * width + i], expected[i], 1e-5)
                  << "dim " << heads.dim << " type " << static_cast<int>(type) << " token " << first + r
                  << " at " << i;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace isotherm::gpu_worker
