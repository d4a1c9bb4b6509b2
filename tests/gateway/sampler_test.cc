#include "gateway/sampling/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

namespace isotherm::gateway {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kDraws = 20000;

// Everything off: the softmax at temperature 1.
SamplingOptions Plain() {
  SamplingOptions options;
  options.temperature = 1;
  options.top_k = 0;
  options.top_p = 1;
  options.min_p = 0;
  return options;
}

SamplingOptions Greedy() {
  SamplingOptions options;
  options.temperature = 0;
  return options;
}

std::map<uint32_t, double> Frequencies(const SamplingOptions& options, const std::vector<float>& logits,
                                       const std::vector<uint32_t>& history = {}) {
  Sampler sampler(options, 1234);
  std::map<uint32_t, double> frequencies;
  for (int i = 0; i < kDraws; ++i) frequencies[sampler.Sample(logits, history).value()] += 1.0 / kDraws;
  return frequencies;
}

// Four standard deviations of a binomial share.
void ExpectShare(double measured, double expected) {
  EXPECT_NEAR(measured, expected, 4 * std::sqrt(expected * (1 - expected) / kDraws));
}

// Probabilities 0.1, 0.2, 0.3, 0.4 in an order that no filter may rely on.
const std::vector<float> kLogits = {std::log(0.3f), std::log(0.1f), std::log(0.4f), std::log(0.2f)};

TEST(SamplerTest, DrawsFromTheSoftmax) {
  auto shares = Frequencies(Plain(), kLogits);
  ExpectShare(shares[0], 0.3);
  ExpectShare(shares[1], 0.1);
  ExpectShare(shares[2], 0.4);
  ExpectShare(shares[3], 0.2);
}

TEST(SamplerTest, TemperatureSharpensAndFlattens) {
  SamplingOptions options = Plain();
  options.temperature = 0.5;  // probabilities go with the square
  auto shares = Frequencies(options, kLogits);
  ExpectShare(shares[2], 0.16 / 0.30);
  ExpectShare(shares[1], 0.01 / 0.30);
  options.temperature = 2;  // with the square root
  const double total = std::sqrt(0.1) + std::sqrt(0.2) + std::sqrt(0.3) + std::sqrt(0.4);
  shares = Frequencies(options, kLogits);
  ExpectShare(shares[1], std::sqrt(0.1) / total);
}

TEST(SamplerTest, TopKKeepsTheMostProbable) {
  SamplingOptions options = Plain();
  options.top_k = 2;
  auto shares = Frequencies(options, kLogits);
  EXPECT_EQ(shares.size(), 2u);
  ExpectShare(shares[2], 0.4 / 0.7);
  ExpectShare(shares[0], 0.3 / 0.7);
  options.top_k = 1;
  EXPECT_EQ(Frequencies(options, kLogits).size(), 1u);
  options.top_k = 1000;
  EXPECT_EQ(Frequencies(options, kLogits).size(), 4u);
}

TEST(SamplerTest, TopPKeepsTheSmallestSetThatReachesIt) {
  SamplingOptions options = Plain();
  options.top_p = 0.65;  // 0.4 + 0.3
  auto shares = Frequencies(options, kLogits);
  EXPECT_EQ(shares.size(), 2u);
  ExpectShare(shares[2], 0.4 / 0.7);
  options.top_p = 0.75;  // one more
  EXPECT_EQ(Frequencies(options, kLogits).size(), 3u);
  options.top_p = 1e-9;
  EXPECT_EQ(Frequencies(options, kLogits).size(), 1u);
}

TEST(SamplerTest, TopPAfterTopKCountsOnlyWhatIsLeft) {
  SamplingOptions options = Plain();
  options.top_k = 3;    // 0.4, 0.3, 0.2 of 0.9
  options.top_p = 0.5;  // 0.4 / 0.9 is not enough
  auto shares = Frequencies(options, kLogits);
  EXPECT_EQ(shares.size(), 2u);
  ExpectShare(shares[2], 0.4 / 0.7);
}

TEST(SamplerTest, MinPIsRelativeToTheMostProbable) {
  SamplingOptions options = Plain();
  options.min_p = 0.6;  // at least 0.24
  auto shares = Frequencies(options, kLogits);
  EXPECT_EQ(shares.size(), 2u);
  ExpectShare(shares[0], 0.3 / 0.7);
}

TEST(SamplerTest, TopPSortsAsFarAsNeededInALargeVocabulary) {
  std::vector<float> logits(1000, 0.0f);  // uniform: the lowest ids win ties
  SamplingOptions options = Plain();
  options.top_p = 0.3;
  const auto shares = Frequencies(options, logits);
  EXPECT_EQ(shares.size(), 300u);
  EXPECT_EQ(shares.rbegin()->first, 299u);
}

TEST(SamplerTest, GreedyTakesTheLowestIdOfEqualLogits) {
  Sampler sampler(Greedy(), 7);
  EXPECT_EQ(sampler.Sample(std::vector<float>{1, 5, 5, -2}, {}).value(), 1u);
  EXPECT_EQ(sampler.Sample(std::vector<float>{-kInfinity, -kInfinity, -3}, {}).value(), 2u);
}

TEST(SamplerTest, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogits) {
  SamplingOptions options = Greedy();
  options.repetition_penalty = 2;
  Sampler sampler(options, 0);
  // 3 / 2 < 2, once however often it occurred.
  EXPECT_EQ(sampler.Sample(std::vector<float>{3, 2}, std::vector<uint32_t>{0, 0, 0}).value(), 1u);
  EXPECT_EQ(sampler.Sample(std::vector<float>{5, 2}, std::vector<uint32_t>{0, 0, 0}).value(), 0u);
  // -1 * 2 < -1.5
  EXPECT_EQ(sampler.Sample(std::vector<float>{-1, -1.5f}, std::vector<uint32_t>{0}).value(), 1u);
}

TEST(SamplerTest, FrequencyPenaltyCountsAndPresencePenaltyDoesNot) {
  SamplingOptions options = Greedy();
  options.frequency_penalty = 1;
  Sampler frequency(options, 0);
  EXPECT_EQ(frequency.Sample(std::vector<float>{3, 0.5f}, std::vector<uint32_t>{0, 0}).value(), 0u);
  EXPECT_EQ(frequency.Sample(std::vector<float>{3, 0.5f}, std::vector<uint32_t>{0, 0, 0}).value(), 1u);
  options.frequency_penalty = 0;
  options.presence_penalty = 1;
  Sampler presence(options, 0);
  EXPECT_EQ(presence.Sample(std::vector<float>{3, 1.5f}, std::vector<uint32_t>{0, 0, 0}).value(), 0u);
  EXPECT_EQ(presence.Sample(std::vector<float>{3, 2.5f}, std::vector<uint32_t>{0}).value(), 1u);
}

TEST(SamplerTest, PenaltiesLookBackNoFurtherThanTheirWindow) {
  SamplingOptions options = Greedy();
  options.presence_penalty = 10;
  options.repetition_window = 2;
  Sampler sampler(options, 0);
  EXPECT_EQ(sampler.Sample(std::vector<float>{3, 2, 1}, std::vector<uint32_t>{0, 2, 2}).value(), 0u);
  EXPECT_EQ(sampler.Sample(std::vector<float>{3, 2, 1}, std::vector<uint32_t>{2, 0, 2}).value(), 1u);
  options.repetition_window = 0;
  Sampler blind(options, 0);
  EXPECT_EQ(blind.Sample(std::vector<float>{3, 2, 1}, std::vector<uint32_t>{0}).value(), 0u);
}

TEST(SamplerTest, LogitBiasComesFirst) {
  SamplingOptions options = Greedy();
  options.logit_bias = {{2, 10.0}, {0, -1e30}};
  Sampler sampler(options, 0);
  EXPECT_EQ(sampler.Sample(std::vector<float>{5, 4, 1}, {}).value(), 2u);
  options.repetition_penalty = 100;  // (1 + 10) / 100 < 4
  Sampler penalized(options, 0);
  EXPECT_EQ(penalized.Sample(std::vector<float>{5, 4, 1}, std::vector<uint32_t>{2}).value(), 1u);
}

TEST(SamplerTest, SameSeedSameTokensOtherSeedOtherTokens) {
  const std::vector<float> logits(100, 0.0f);
  const auto draw = [&](uint64_t seed) {
    Sampler sampler(Plain(), seed);
    std::vector<uint32_t> tokens;
    for (int i = 0; i < 20; ++i) tokens.push_back(sampler.Sample(logits, {}).value());
    return tokens;
  };
  EXPECT_EQ(draw(42), draw(42));
  EXPECT_NE(draw(42), draw(43));
}

TEST(SamplerTest, ExtremeLogitsAndTemperaturesDrawSomethingPossible) {
  const float largest = std::numeric_limits<float>::max();
  for (const double temperature : {1e-38, 1e-3, 1.0, 3e38}) {
    SamplingOptions options = Plain();
    options.temperature = temperature;
    options.top_p = 0.9;
    Sampler sampler(options, 5);
    for (int i = 0; i < 100; ++i) {
      const uint32_t token = sampler.Sample(std::vector<float>{-kInfinity, largest, -largest}, {}).value();
      EXPECT_NE(token, 0u) << temperature;
      if (temperature <= 1) {
        EXPECT_EQ(token, 1u) << temperature;
      }
    }
  }
}

TEST(SamplerTest, LogitsThatAreNoDistributionAreErrorsAndCostNoRandomness) {
  const std::vector<float> good(50, 0.0f);
  Sampler sampler(Plain(), 9), untouched(Plain(), 9);
  const float nan = std::nanf("");
  for (const std::vector<float>& bad :
       {std::vector<float>{0, nan}, {kInfinity, 0}, {-kInfinity, -kInfinity}, {}}) {
    EXPECT_EQ(sampler.Sample(bad, {}).status().code(), absl::StatusCode::kInternal);
  }
  EXPECT_EQ(sampler.Sample(good, {}).value(), untouched.Sample(good, {}).value());
}

}  // namespace
}  // namespace isotherm::gateway
