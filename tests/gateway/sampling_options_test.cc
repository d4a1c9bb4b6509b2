#include "gateway/sampling/sampling_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "common/rpc/status.h"

namespace isotherm::gateway {
namespace {

constexpr int64_t kVocabulary = 100;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::nanf("");

TEST(SamplingOptionsTest, UnsetFieldsHaveTheDocumentedDefaults) {
  const SamplingOptions options = ParseSamplingOptions({}, kVocabulary).value();
  EXPECT_DOUBLE_EQ(options.temperature, 0.8);
  EXPECT_EQ(options.top_k, 40);
  EXPECT_DOUBLE_EQ(options.top_p, 0.95);
  EXPECT_DOUBLE_EQ(options.min_p, 0.05);
  EXPECT_EQ(options.repetition_penalty, 1);
  EXPECT_EQ(options.frequency_penalty, 0);
  EXPECT_EQ(options.presence_penalty, 0);
  EXPECT_EQ(options.repetition_window, 64);
  EXPECT_TRUE(options.logit_bias.empty());
}

TEST(SamplingOptionsTest, ZeroIsAValueOfItsOwn) {
  v1::SamplingParameters parameters;
  parameters.set_temperature(0);
  parameters.set_top_k(0);
  parameters.set_min_p(0);
  parameters.set_repetition_window(0);
  const SamplingOptions options = ParseSamplingOptions(parameters, kVocabulary).value();
  EXPECT_TRUE(options.greedy());
  EXPECT_EQ(options.top_k, 0);
  EXPECT_EQ(options.min_p, 0);
  EXPECT_EQ(options.repetition_window, 0);
}

struct BadField {
  std::string field;
  std::function<void(v1::SamplingParameters&)> set;
};

class BadSamplingFieldTest : public testing::TestWithParam<BadField> {};

TEST_P(BadSamplingFieldTest, IsNamed) {
  v1::SamplingParameters parameters;
  GetParam().set(parameters);
  const absl::Status status = ParseSamplingOptions(parameters, kVocabulary).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(rpc::ViolatedField(status), GetParam().field);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(GetParam().field));
}

using P = v1::SamplingParameters;
INSTANTIATE_TEST_SUITE_P(
    All, BadSamplingFieldTest,
    testing::Values(BadField{"sampling.temperature", [](P& p) { p.set_temperature(kNan); }},
                    BadField{"sampling.temperature", [](P& p) { p.set_temperature(-0.1f); }},
                    BadField{"sampling.temperature", [](P& p) { p.set_temperature(kInfinity); }},
                    BadField{"sampling.top_p", [](P& p) { p.set_top_p(2); }},
                    BadField{"sampling.top_p", [](P& p) { p.set_top_p(0); }},
                    BadField{"sampling.top_p", [](P& p) { p.set_top_p(kNan); }},
                    BadField{"sampling.min_p", [](P& p) { p.set_min_p(1); }},
                    BadField{"sampling.min_p", [](P& p) { p.set_min_p(-1); }},
                    BadField{"sampling.repetition_penalty", [](P& p) { p.set_repetition_penalty(0); }},
                    BadField{"sampling.repetition_penalty",
                             [](P& p) { p.set_repetition_penalty(kInfinity); }},
                    BadField{"sampling.frequency_penalty", [](P& p) { p.set_frequency_penalty(kNan); }},
                    BadField{"sampling.presence_penalty", [](P& p) { p.set_presence_penalty(-kInfinity); }},
                    BadField{"sampling.logit_bias[100]", [](P& p) { (*p.mutable_logit_bias())[100] = 1; }},
                    BadField{"sampling.logit_bias[5]", [](P& p) { (*p.mutable_logit_bias())[5] = kNan; }}));

}  // namespace
}  // namespace isotherm::gateway
