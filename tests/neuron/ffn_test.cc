#include "common/neuron/ffn.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "common/kernels/row_kernels.h"
#include "common/kernels/tolerance.h"
#include "common/neuron/mask.h"
#include "tests/neuron/ffn_reference.h"

namespace isotherm::neuron {
namespace {

using kernels::WeightType;
using model::Activation;

std::vector<int32_t> Iota(int64_t n) {
  std::vector<int32_t> all(n);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// Compacted pre-activations, as the kernels compute them.
std::vector<float> GateValues(const RandomLayer& layer, const FfnRequest& request) {
  const kernels::RowKernels& gate = kernels::GetRowKernels(layer.layout().gate_type);
  const int64_t words = MaskWords(request.ffn);
  std::vector<uint8_t> room(request.rows * gate.input_bytes(layer.hidden()) + 63);
  const kernels::RowInputs inputs =
      kernels::PrepareInputs(gate, request.x, layer.hidden(), request.rows, layer.hidden(), AlignTo64(room));
  std::vector<float> values;
  for (int64_t row = 0; row < request.rows; ++row) {
    ForEachSet(request.masks + row * words, words, [&](int64_t neuron) {
      const uint8_t* bundle = layer.Bundles() + neuron * layer.layout().bundle_bytes;
      float product;
      gate.mat_mul(bundle, 0, 1, inputs.From(row), 1, layer.hidden(), &product, 1);
      values.push_back(product + layer.layout().Bias(bundle));
    });
  }
  return values;
}

struct Outcome {
  std::vector<float> y;
  FfnStatistics statistics;
};

Outcome RunOn(base::ThreadPool& pool, const RandomLayer& layer, const BundleView& view,
              const FfnRequest& request) {
  FfnExecutor executor(&pool, layer.hidden(), layer.ffn(), request.rows);
  Outcome outcome;
  outcome.y.assign(request.rows * layer.hidden(), std::nanf(""));
  outcome.statistics = executor.Run(view, request, outcome.y.data());
  return outcome;
}

void ExpectMatches(const Outcome& outcome, const ReferenceResult& reference, const std::string& what) {
  EXPECT_EQ(outcome.statistics.computed, reference.statistics.computed) << what;
  EXPECT_LE(std::abs(outcome.statistics.active - reference.statistics.active), reference.undecided) << what;
  for (size_t i = 0; i < outcome.y.size(); ++i) {
    ASSERT_TRUE(kernels::Within(outcome.y[i], reference.y[i], reference.bound[i]))
        << what << ": y[" << i << "] is " << outcome.y[i] << ", expected " << reference.y[i] << " within "
        << reference.bound[i];
  }
}

bool BitEqual(const float* a, const float* b, int64_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; }

FfnRequest MakeRequest(const RandomLayer& layer, int64_t rows, const std::vector<float>& x,
                       const std::vector<uint64_t>& masks) {
  FfnRequest request;
  request.rows = rows;
  request.x = x.data();
  request.masks = masks.data();
  request.ffn = layer.ffn();
  return request;
}

class FfnTypeTest : public testing::TestWithParam<WeightType> {};

INSTANTIATE_TEST_SUITE_P(Types, FfnTypeTest,
                         testing::Values(WeightType::kF32, WeightType::kF16, WeightType::kBF16,
                                         WeightType::kQ8_0, WeightType::kQ4_0),
                         [](const auto& info) { return std::string(kernels::WeightTypeName(info.param)); });

TEST_P(FfnTypeTest, MatchesReferenceForEveryBatchSize) {
  const RandomLayer layer(GetParam(), 288, 203, 1);
  base::ThreadPool pool({.threads = 2});
  for (int64_t rows = 1; rows <= 40; ++rows) {
    const std::vector<float> x = RandomInput(rows, layer.hidden(), rows);
    for (double share : {0.0, 0.1, 0.6, 1.0}) {
      const std::vector<uint64_t> masks = RandomMasks(rows, layer.ffn(), share, 7 * rows);
      const FfnRequest request = MakeRequest(layer, rows, x, masks);
      ExpectMatches(RunOn(pool, layer, layer.All(), request),
                    Reference(layer.weights(), Iota(layer.ffn()), request),
                    "rows " + std::to_string(rows) + ", share " + std::to_string(share));
    }
  }
}

// In fixed partitions, and with an owner for each neuron whom others help.
class FfnSharingTest : public testing::TestWithParam<std::tuple<WeightType, int>> {};

INSTANTIATE_TEST_SUITE_P(TypesAndThreads, FfnSharingTest,
                         testing::Combine(testing::Values(WeightType::kF32, WeightType::kF16,
                                                          WeightType::kBF16, WeightType::kQ8_0,
                                                          WeightType::kQ4_0),
                                          testing::Values(3, 6)),
                         [](const auto& info) {
                           return std::string(kernels::WeightTypeName(std::get<0>(info.param))) + "_" +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST_P(FfnSharingTest, RowAloneEqualsRowInBatch) {
  const RandomLayer layer(std::get<0>(GetParam()), 160, 300, 2);
  base::ThreadPool pool({.threads = std::get<1>(GetParam())});
  const std::vector<float> x = RandomInput(kSparseRows, layer.hidden(), 3);
  const int64_t words = MaskWords(layer.ffn());
  for (double share : {0.1, 0.5, 1.0}) {
    const std::vector<uint64_t> masks = RandomMasks(kSparseRows, layer.ffn(), share, 5);
    for (int64_t rows : {int64_t{2}, int64_t{7}, kSparseRows}) {
      const Outcome batch = RunOn(pool, layer, layer.All(), MakeRequest(layer, rows, x, masks));
      for (int64_t row = 0; row < rows; ++row) {
        FfnRequest alone = MakeRequest(layer, 1, x, masks);
        alone.x += row * layer.hidden();
        alone.masks += row * words;
        EXPECT_TRUE(BitEqual(RunOn(pool, layer, layer.All(), alone).y.data(), &batch.y[row * layer.hidden()],
                             layer.hidden()))
            << "row " << row << " of " << rows << " at share " << share;
      }
    }
  }
}

TEST(FfnTest, MatchesReferenceForAwkwardSizesThreadsAndActivations) {
  for (int threads : {1, 2, 5}) {
    base::ThreadPool pool({.threads = threads});
    for (int64_t hidden : {1, 7, 33, 130}) {
      for (int64_t ffn : {1, 63, 64, 65, 1030}) {
        const RandomLayer layer(WeightType::kF32, hidden, ffn, 11);
        for (int64_t rows : {1, 3, 17}) {
          const std::vector<float> x = RandomInput(rows, hidden, 4);
          const std::vector<uint64_t> masks = RandomMasks(rows, ffn, 0.4, 5);
          FfnRequest request = MakeRequest(layer, rows, x, masks);
          for (Activation activation : {Activation::kRelu, Activation::kFatRelu, Activation::kSilu}) {
            request.activation = activation;
            request.activation_threshold = 0.2f;
            ExpectMatches(RunOn(pool, layer, layer.All(), request),
                          Reference(layer.weights(), Iota(ffn), request),
                          "threads " + std::to_string(threads) + ", hidden " + std::to_string(hidden) +
                              ", ffn " + std::to_string(ffn) + ", rows " + std::to_string(rows));
          }
        }
      }
    }
  }
}

struct FormCase {
  FfnForm form;
  Activation activation;
};

class FfnFormTest : public testing::TestWithParam<FormCase> {};

INSTANTIATE_TEST_SUITE_P(Forms, FfnFormTest,
                         testing::Values(FormCase{FfnForm::kGated, Activation::kDRelu},
                                         FormCase{FfnForm::kGated, Activation::kRelu2},
                                         FormCase{FfnForm::kUngated, Activation::kRelu},
                                         FormCase{FfnForm::kUngated, Activation::kRelu2},
                                         FormCase{FfnForm::kUngated, Activation::kGelu},
                                         FormCase{FfnForm::kUngatedWithBias, Activation::kRelu},
                                         FormCase{FfnForm::kUngatedWithBias, Activation::kFatRelu},
                                         FormCase{FfnForm::kUngatedWithBias, Activation::kSilu}));

TEST_P(FfnFormTest, MatchesReferenceWithValuesComputedAndGiven) {
  base::ThreadPool pool({.threads = 2});
  for (WeightType type : {WeightType::kF32, WeightType::kQ8_0}) {
    const RandomLayer layer(type, 96, 203, 23, GetParam().form);
    for (int64_t rows : {1, 5, 16, 17, 40}) {
      const std::vector<float> x = RandomInput(rows, layer.hidden(), rows);
      for (double share : {0.0, 0.3, 1.0}) {
        const std::vector<uint64_t> masks = RandomMasks(rows, layer.ffn(), share, 3 * rows);
        FfnRequest request = MakeRequest(layer, rows, x, masks);
        request.activation = GetParam().activation;
        request.activation_threshold = 0.2f;
        const std::string what = std::to_string(rows) + " rows, share " + std::to_string(share);
        const ReferenceResult reference = Reference(layer.weights(), Iota(layer.ffn()), request);
        const Outcome computed = RunOn(pool, layer, layer.All(), request);
        ExpectMatches(computed, reference, what);
        const std::vector<float> values = GateValues(layer, request);
        request.gate_values = values.data();
        const Outcome given = RunOn(pool, layer, layer.All(), request);
        ExpectMatches(given, reference, what + ", values given");
        request.gate_values = nullptr;
        request.dense = true;
        ExpectMatches(RunOn(pool, layer, layer.All(), request), reference, what + ", dense");
        if (rows <= kSparseRows) {
          EXPECT_TRUE(BitEqual(given.y.data(), computed.y.data(), given.y.size())) << what;
        }
      }
    }
  }
}

// Firings are counted where the neuron's part in the result is not zero: with dReLU that takes both factors.
TEST(FfnTest, DoubleReluFiresWhereBothFactorsArePositive) {
  const RandomLayer layer(WeightType::kF32, 64, 200, 29);
  base::ThreadPool pool({.threads = 1});
  for (int64_t rows : {2, 20}) {
    const std::vector<float> x = RandomInput(rows, layer.hidden(), 8);
    const std::vector<uint64_t> masks = RandomMasks(rows, layer.ffn(), 1.0, 1);
    FfnRequest request = MakeRequest(layer, rows, x, masks);
    const int64_t gates = RunOn(pool, layer, layer.All(), request).statistics.active;
    std::vector<uint64_t> firings(layer.ffn(), 0);
    request.activation = Activation::kDRelu;
    request.firings = firings.data();
    const int64_t both = RunOn(pool, layer, layer.All(), request).statistics.active;
    EXPECT_EQ(std::accumulate(firings.begin(), firings.end(), uint64_t{0}), static_cast<uint64_t>(both));
    EXPECT_GT(both, gates / 3);
    EXPECT_LT(both, 2 * gates / 3);
  }
}

TEST(FfnTest, ListedNeuronsContributeAndNoOthers) {
  const RandomLayer layer(WeightType::kF16, 64, 500, 21);
  base::ThreadPool pool({.threads = 2});
  for (const std::vector<int32_t>& neurons :
       {std::vector<int32_t>{}, {0}, {499}, {0, 1, 2, 63, 64, 65, 127, 128, 200, 498, 499}}) {
    std::vector<uint8_t> storage;
    const BundleView view = layer.Only(neurons, &storage);
    for (int64_t rows : {1, 5, 20}) {
      const std::vector<float> x = RandomInput(rows, layer.hidden(), 6);
      const std::vector<uint64_t> masks = RandomMasks(rows, layer.ffn(), 0.7, 9);
      const FfnRequest request = MakeRequest(layer, rows, x, masks);
      ExpectMatches(RunOn(pool, layer, view, request), Reference(layer.weights(), neurons, request),
                    std::to_string(neurons.size()) + " neurons, " + std::to_string(rows) + " rows");
    }
  }
}

TEST(FfnTest, GateValuesReplaceTheGateRows) {
  const RandomLayer layer(WeightType::kQ8_0, 64, 400, 31);
  // Bundles whose gate rows are poisoned: reading one would show.
  std::vector<int32_t> neurons;
  for (int32_t j = 0; j < 400; j += 3) neurons.push_back(j);
  std::vector<uint8_t> storage;
  const BundleView view = layer.Only(neurons, &storage);
  for (size_t k = 0; k < neurons.size(); ++k) {
    std::memset(AlignTo64(storage) + k * layer.layout().bundle_bytes, 0xff, layer.layout().up_offset);
  }
  std::vector<uint8_t> clean_storage;
  const BundleView clean = layer.Only(neurons, &clean_storage);
  base::ThreadPool pool({.threads = 2});
  for (int64_t rows : {1, 4, 16, 33, 40}) {
    const std::vector<float> x = RandomInput(rows, layer.hidden(), 8);
    const std::vector<uint64_t> masks = RandomMasks(rows, layer.ffn(), 0.5, 13);
    FfnRequest request = MakeRequest(layer, rows, x, masks);
    const Outcome computed = RunOn(pool, layer, clean, request);
    const ReferenceResult reference = Reference(layer.weights(), neurons, request);
    const std::vector<float> gates = GateValues(layer, request);
    request.gate_values = gates.data();
    const Outcome given = RunOn(pool, layer, view, request);
    ExpectMatches(given, reference, std::to_string(rows) + " rows");
    if (rows <= kSparseRows) {
      EXPECT_TRUE(BitEqual(given.y.data(), computed.y.data(), given.y.size()));
    }
  }
}

// Every first row that is wanted, and the other two of the neurons that fire; once for all rows that want the
// same.
TEST(FfnTest, CountsTheBytesOfTheRowsRead) {
  const RandomLayer layer(WeightType::kQ8_0, 64, 400, 37);
  const BundleLayout& layout = layer.layout();
  const std::vector<float> one = RandomInput(1, layer.hidden(), 8);
  const std::vector<uint64_t> mask = RandomMasks(1, layer.ffn(), 0.5, 13);
  for (int threads : {1, 6}) {
    base::ThreadPool pool({.threads = threads});
    const FfnRequest alone = MakeRequest(layer, 1, one, mask);
    const FfnStatistics sparse = RunOn(pool, layer, layer.All(), alone).statistics;
    const int64_t others = sparse.active * (layout.up_bytes() + layout.down_bytes());
    EXPECT_GT(sparse.active, 0);
    EXPECT_LT(sparse.active, sparse.computed);
    EXPECT_EQ(sparse.bytes, sparse.computed * layout.first_bytes() + others);

    FfnRequest given = alone;
    const std::vector<float> gates = GateValues(layer, alone);
    given.gate_values = gates.data();
    EXPECT_EQ(RunOn(pool, layer, layer.All(), given).statistics.bytes, others);

    for (int64_t rows : {5, 20}) {
      std::vector<float> x;
      std::vector<uint64_t> masks;
      for (int64_t row = 0; row < rows; ++row) {
        x.insert(x.end(), one.begin(), one.end());
        masks.insert(masks.end(), mask.begin(), mask.end());
      }
      FfnRequest together = MakeRequest(layer, rows, x, masks);
      const int64_t all = sparse.computed * layout.bundle_bytes;
      const int64_t bytes = RunOn(pool, layer, layer.All(), together).statistics.bytes;
      EXPECT_EQ(bytes, rows <= kSparseRows ? sparse.bytes : all) << rows;
      together.dense = true;
      EXPECT_EQ(RunOn(pool, layer, layer.All(), together).statistics.bytes, all) << rows;
    }
  }
}

TEST(FfnTest, DenseComputesTheSame) {
  const RandomLayer layer(WeightType::kF16, 128, 256, 41);
  base::ThreadPool pool({.threads = 2});
  for (int64_t rows : {1, 6, 24}) {
    const std::vector<float> x = RandomInput(rows, layer.hidden(), 8);
    const std::vector<uint64_t> masks = RandomMasks(rows, layer.ffn(), 1.0, 13);
    FfnRequest request = MakeRequest(layer, rows, x, masks);
    const Outcome sparse = RunOn(pool, layer, layer.All(), request);
    request.dense = true;
    const Outcome dense = RunOn(pool, layer, layer.All(), request);
    EXPECT_EQ(dense.statistics.active, sparse.statistics.active);
    EXPECT_LT(dense.statistics.active, dense.statistics.computed);
    EXPECT_TRUE(BitEqual(dense.y.data(), sparse.y.data(), dense.y.size())) << rows << " rows";
  }
}

TEST(FfnTest, CountsTheFiringsOfEachNeuron) {
  const RandomLayer layer(WeightType::kF32, 48, 131, 45);
  base::ThreadPool pool({.threads = 3});
  std::vector<int32_t> neurons;
  for (int32_t j = 1; j < layer.ffn(); j += 3) neurons.push_back(j);
  std::vector<uint8_t> storage;
  const BundleView view = layer.Only(neurons, &storage);
  for (int64_t rows : {1, 5, 16, 17, 600}) {
    const std::vector<float> x = RandomInput(rows, layer.hidden(), 8);
    const std::vector<uint64_t> masks = RandomMasks(rows, layer.ffn(), 0.4, 13);
    FfnRequest request = MakeRequest(layer, rows, x, masks);
    // What is there already stays.
    std::vector<uint64_t> firings(layer.ffn(), 1000);
    request.firings = firings.data();
    RunOn(pool, layer, view, request);

    request.firings = nullptr;
    std::vector<uint64_t> expected(layer.ffn(), 1000);
    for (int32_t neuron : neurons) {
      std::vector<uint8_t> one_storage;
      const std::vector<int32_t> one = {neuron};
      expected[neuron] += RunOn(pool, layer, layer.Only(one, &one_storage), request).statistics.active;
    }
    EXPECT_EQ(firings, expected) << rows << " rows";
  }
}

TEST(FfnTest, RepeatsAreBitEqual) {
  const RandomLayer layer(WeightType::kF16, 192, 900, 51);
  for (const int threads : {4, 9}) {
    base::ThreadPool pool({.threads = threads});
    // 600 rows take the tiled path in two parts.
    for (int64_t rows : {1, 3, 16, 40, 600}) {
      const std::vector<float> x = RandomInput(rows, layer.hidden(), 8);
      const std::vector<uint64_t> masks = RandomMasks(rows, layer.ffn(), 0.2, 17);
      const FfnRequest request = MakeRequest(layer, rows, x, masks);
      FfnExecutor executor(&pool, layer.hidden(), layer.ffn(), rows);
      std::vector<float> first(rows * layer.hidden()), again(rows * layer.hidden());
      executor.Run(layer.All(), request, first.data());
      for (int i = 0; i < 10; ++i) {
        executor.Run(layer.All(), request, again.data());
        ASSERT_TRUE(BitEqual(first.data(), again.data(), first.size()))
            << rows << " rows, " << threads << " threads, repeat " << i;
      }
    }
  }
}

// Every wanted neuron belongs to one member of the pool, which cannot do it all before others are idle: they
// help, and what they did does not show.
TEST(FfnTest, HelpChangesNothing) {
  const RandomLayer layer(WeightType::kF16, 192, 900, 52);
  std::vector<int32_t> neurons = Iota(layer.ffn());
  for (const bool dense : {false, true}) {
    for (const int64_t rows : {1, 5}) {
      const std::vector<float> x = RandomInput(rows, layer.hidden(), 8);
      std::vector<uint64_t> masks(rows * MaskWords(layer.ffn()));
      for (int64_t row = 0; row < rows; ++row) {
        for (int32_t j = 0; j < layer.ffn(); ++j) {
          if (j / 8 % 7 == 2 && j % 5 != row) SetBit(&masks[row * MaskWords(layer.ffn())], j);
        }
      }
      FfnRequest request = MakeRequest(layer, rows, x, masks);
      request.dense = dense;
      const ReferenceResult reference = Reference(layer.weights(), neurons, request);
      base::ThreadPool pool({.threads = 7});
      const Outcome first = RunOn(pool, layer, layer.All(), request);
      ExpectMatches(first, reference, std::to_string(rows) + " rows");
      for (int i = 0; i < 20; ++i) {
        const Outcome again = RunOn(pool, layer, layer.All(), request);
        ASSERT_TRUE(BitEqual(first.y.data(), again.y.data(), static_cast<int64_t>(first.y.size()))) << i;
        EXPECT_EQ(again.statistics.computed, first.statistics.computed);
        EXPECT_EQ(again.statistics.active, first.statistics.active);
      }
    }
  }
}

TEST(FfnTest, PrefetchingChangesNothing) {
  const std::vector<int32_t> some = {1, 2, 63, 64, 200, 499};
  for (const WeightType type : {WeightType::kF32, WeightType::kQ4_0}) {
    const RandomLayer layer(type, 192, 500, 31);
    std::vector<uint8_t> storage;
    const BundleView views[] = {layer.All(), layer.Only(some, &storage)};
    for (const int threads : {1, 3, 6}) {
      base::ThreadPool pool({.threads = threads});
      FfnExecutor executor(&pool, layer.hidden(), layer.ffn(), 2);
      const std::vector<float> x = RandomInput(2, layer.hidden(), 6);
      const std::vector<uint64_t> masks = RandomMasks(2, layer.ffn(), 0.3, 9);
      std::vector<uint64_t> all(MaskWords(layer.ffn()));
      SetAll(all.data(), layer.ffn());
      for (const BundleView& view : views) {
        const FfnRequest request = MakeRequest(layer, 2, x, masks);
        std::vector<float> before(2 * layer.hidden()), after(2 * layer.hidden());
        executor.Run(view, request, before.data());
        std::atomic<int> asked{0};
        executor.Prefetch(view, all.data(), [&] { return ++asked > 40; });
        EXPECT_GT(asked, 0);
        executor.Run(view, request, after.data());
        EXPECT_TRUE(BitEqual(before.data(), after.data(), static_cast<int64_t>(before.size())));
      }
    }
  }
}

TEST(FfnTest, RequestsLongerThanATiledPartMatchReference) {
  const RandomLayer layer(WeightType::kQ8_0, 32, 70, 61);
  base::ThreadPool pool({.threads = 2});
  const int64_t rows = 1030;
  const std::vector<float> x = RandomInput(rows, layer.hidden(), 8);
  const std::vector<uint64_t> masks = RandomMasks(rows, layer.ffn(), 0.3, 19);
  FfnRequest request = MakeRequest(layer, rows, x, masks);
  const std::vector<float> gates = GateValues(layer, request);
  const ReferenceResult reference = Reference(layer.weights(), Iota(layer.ffn()), request);
  ExpectMatches(RunOn(pool, layer, layer.All(), request), reference, "gates computed");
  request.gate_values = gates.data();
  ExpectMatches(RunOn(pool, layer, layer.All(), request), reference, "gates given");
}

TEST(FfnTest, OneExecutorServesRequestsOfChangingSize) {
  const RandomLayer layer(WeightType::kF16, 64, 300, 71);
  base::ThreadPool pool({.threads = 2});
  FfnExecutor executor(&pool, layer.hidden(), layer.ffn(), 40);
  for (int64_t rows : {40, 1, 17, 16, 2, 33}) {
    const std::vector<float> x = RandomInput(rows, layer.hidden(), rows);
    const std::vector<uint64_t> masks = RandomMasks(rows, layer.ffn(), 0.3, rows);
    const FfnRequest request = MakeRequest(layer, rows, x, masks);
    Outcome outcome{std::vector<float>(rows * layer.hidden(), -1.0f), {}};
    outcome.statistics = executor.Run(layer.All(), request, outcome.y.data());
    ExpectMatches(outcome, Reference(layer.weights(), Iota(layer.ffn()), request),
                  std::to_string(rows) + " rows");
  }
}

TEST(FfnTest, NotANumberInOneRowStaysInThatRow) {
  const RandomLayer layer(WeightType::kF32, 64, 100, 81);
  base::ThreadPool pool({.threads = 2});
  for (int64_t rows : {2, 20}) {
    std::vector<float> x = RandomInput(rows, layer.hidden(), 8);
    x[5] = std::nanf("");
    const std::vector<uint64_t> masks = RandomMasks(rows, layer.ffn(), 1.0, 1);
    const Outcome outcome = RunOn(pool, layer, layer.All(), MakeRequest(layer, rows, x, masks));
    EXPECT_TRUE(std::isnan(outcome.y[0]));
    for (size_t i = layer.hidden(); i < outcome.y.size(); ++i) ASSERT_TRUE(std::isfinite(outcome.y[i])) << i;
  }
}

// The bound is tight enough to notice one neuron.
TEST(FfnTest, ReferenceRejectsAMissingNeuron) {
  const RandomLayer layer(WeightType::kF16, 64, 400, 91);
  base::ThreadPool pool({.threads = 1});
  const std::vector<float> x = RandomInput(1, layer.hidden(), 8);
  std::vector<uint64_t> masks = RandomMasks(1, layer.ffn(), 1.0, 1);
  FfnRequest request = MakeRequest(layer, 1, x, masks);
  request.activation = Activation::kSilu;
  const ReferenceResult reference = Reference(layer.weights(), Iota(layer.ffn()), request);
  for (int64_t neuron : {0, 63, 399}) {
    std::vector<uint64_t> missing = masks;
    ClearBit(missing.data(), neuron);
    request.masks = missing.data();
    const Outcome outcome = RunOn(pool, layer, layer.All(), request);
    int64_t outside = 0;
    for (size_t i = 0; i < outcome.y.size(); ++i) {
      outside += !kernels::Within(outcome.y[i], reference.y[i], reference.bound[i]);
    }
    EXPECT_GT(outside, layer.hidden() / 2) << "neuron " << neuron;
  }
}

}  // namespace
}  // namespace isotherm::neuron
