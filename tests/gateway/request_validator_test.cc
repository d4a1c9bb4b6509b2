#include "gateway/api/request_validator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <string>

#include "common/rpc/status.h"
#include "tests/gateway/toy_runner.h"

namespace isotherm::gateway {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int64_t kContext = 100;

class RequestValidatorTest : public testing::Test {
 protected:
  absl::StatusOr<GenerateTask> Generate(const v1::GenerateRequest& request) {
    return validator_.Generate(request, kContext);
  }

  const std::unique_ptr<text::Tokenizer> tokenizer_ = MakeToyTokenizer();
  const RequestValidator validator_{"toy", tokenizer_.get()};
};

v1::GenerateRequest Prompt(const std::string& text) {
  v1::GenerateRequest request;
  request.set_text(text);
  return request;
}

TEST_F(RequestValidatorTest, TextBecomesTokensWithTheModelsBos) {
  v1::GenerateRequest request = Prompt("abc");
  EXPECT_EQ(Generate(request)->prompt, tokenizer_->Encode("abc").value());
  EXPECT_EQ(Generate(request)->prompt.front(), 1u);
  request.set_add_bos(false);
  EXPECT_NE(Generate(request)->prompt.front(), 1u);
}

TEST_F(RequestValidatorTest, ControlTokensWrittenInAPromptAreText) {
  const GenerateTask task = Generate(Prompt("</s>")).value();
  EXPECT_THAT(task.prompt, testing::Not(testing::Contains(kToyEos)));
}

TEST_F(RequestValidatorTest, TokensAreTakenAsTheyAre) {
  v1::GenerateRequest request;
  for (const uint32_t id : {5u, 2u, 260u}) request.mutable_tokens()->add_ids(id);
  EXPECT_THAT(Generate(request)->prompt, ElementsAre(5, 2, 260));
}

TEST_F(RequestValidatorTest, AnEmptyTextIsAPromptOnlyWithBos) {
  v1::GenerateRequest request = Prompt("");
  EXPECT_THAT(Generate(request)->prompt, ElementsAre(1));
  request.set_add_bos(false);
  EXPECT_EQ(rpc::ViolatedField(Generate(request).status()), "prompt");
}

TEST_F(RequestValidatorTest, MaxTokensMayExceedTheContext) {
  v1::GenerateRequest request = Prompt("a");
  request.mutable_stopping()->set_max_tokens(1000000000);
  EXPECT_EQ(Generate(request)->max_tokens, 1000000000);
}

TEST_F(RequestValidatorTest, SeedsAreKeptOrDrawn) {
  v1::GenerateRequest request = Prompt("a");
  EXPECT_NE(Generate(request)->seed, Generate(request)->seed);
  request.mutable_sampling()->set_seed(0);
  EXPECT_EQ(Generate(request)->seed, 0u);
}

TEST_F(RequestValidatorTest, AnotherModelIsNotFound) {
  v1::GenerateRequest request = Prompt("a");
  request.set_model("toy");
  EXPECT_TRUE(Generate(request).ok());
  request.set_model("gpt");
  const absl::Status status = Generate(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("toy"));
}

struct BadRequest {
  std::string field;
  std::function<void(v1::GenerateRequest&)> spoil;
};

class BadRequestTest : public RequestValidatorTest, public testing::WithParamInterface<BadRequest> {};

TEST_P(BadRequestTest, NamesTheField) {
  v1::GenerateRequest request = Prompt("good");
  GetParam().spoil(request);
  const absl::Status status = Generate(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(rpc::ViolatedField(status), GetParam().field) << status;
}

using R = v1::GenerateRequest;
INSTANTIATE_TEST_SUITE_P(
    All, BadRequestTest,
    testing::Values(BadRequest{"prompt", [](R& r) { r.clear_prompt(); }},
                    BadRequest{"prompt", [](R& r) { r.mutable_tokens(); }},
                    BadRequest{"tokens.ids[1]",
                               [](R& r) {
                                 r.mutable_tokens()->add_ids(3);
                                 r.mutable_tokens()->add_ids(4000000000u);
                               }},
                    BadRequest{"text", [](R& r) { r.set_text("broken \xC3 character"); }},
                    BadRequest{"text", [](R& r) { r.set_text(std::string(10 << 20, 'a')); }},
                    BadRequest{"stopping.max_tokens", [](R& r) { r.mutable_stopping()->set_max_tokens(0); }},
                    BadRequest{"stopping.stop",
                               [](R& r) {
                                 for (int i = 0; i < 100000; ++i) r.mutable_stopping()->add_stop("stop");
                               }},
                    BadRequest{"stopping.stop[1]",
                               [](R& r) {
                                 r.mutable_stopping()->add_stop("good");
                                 r.mutable_stopping()->add_stop("");
                               }},
                    BadRequest{"stopping.stop[0]",
                               [](R& r) { r.mutable_stopping()->add_stop(std::string(1 << 20, 's')); }},
                    BadRequest{"sampling.temperature",
                               [](R& r) { r.mutable_sampling()->set_temperature(std::nanf("")); }},
                    BadRequest{"sampling.top_p", [](R& r) { r.mutable_sampling()->set_top_p(2); }},
                    BadRequest{"sampling.logit_bias[4000000000]", [](R& r) {
                                 (*r.mutable_sampling()->mutable_logit_bias())[4000000000u] = 1;
                               }}));

TEST_F(RequestValidatorTest, ScoreTakesTextOrTokens) {
  v1::ScoreRequest request;
  EXPECT_EQ(rpc::ViolatedField(validator_.Score(request, kContext).status()), "input");
  request.set_text("abc");
  EXPECT_EQ(validator_.Score(request, kContext).value(), tokenizer_->Encode("abc").value());
  request.mutable_tokens()->add_ids(100000);
  EXPECT_EQ(rpc::ViolatedField(validator_.Score(request, kContext).status()), "tokens.ids[0]");
  request.mutable_tokens()->clear_ids();
  EXPECT_EQ(rpc::ViolatedField(validator_.Score(request, kContext).status()), "input");
}

TEST_F(RequestValidatorTest, TokenizeAndDetokenize) {
  v1::TokenizeRequest tokenize;
  tokenize.set_text("</s>");
  tokenize.set_add_bos(false);
  EXPECT_GT(validator_.Tokenize(tokenize)->size(), 1u);
  tokenize.set_parse_special(true);
  EXPECT_THAT(validator_.Tokenize(tokenize).value(), ElementsAre(kToyEos));

  v1::DetokenizeRequest detokenize;
  const std::vector<uint32_t> ids = tokenizer_->Encode("a word").value();
  detokenize.mutable_tokens()->Add(ids.begin(), ids.end());
  EXPECT_EQ(validator_.Detokenize(detokenize).value(), "a word");
  detokenize.set_render_special(true);
  EXPECT_THAT(validator_.Detokenize(detokenize).value(), HasSubstr("<s>"));
  detokenize.add_tokens(1u << 31);
  EXPECT_THAT(rpc::ViolatedField(validator_.Detokenize(detokenize).status()),
              testing::Optional(HasSubstr("tokens[")));
}

}  // namespace
}  // namespace isotherm::gateway
