#include "gateway/text/vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "gateway/text/tokenizer.h"
#include "tests/gguf/gguf_builder.h"

namespace isotherm::text {
namespace {

using ::isotherm::testing::Bytes;
using ::isotherm::testing::GgufBuilder;
using ::testing::AllOf;
using ::testing::HasSubstr;

absl::StatusOr<Vocabulary> Read(const GgufBuilder& builder) {
  const Bytes bytes = builder.Build();
  const auto file = gguf::File::Parse(bytes, "test.gguf");
  if (!file.ok()) return file.status();
  return Vocabulary::FromFile(**file);
}

GgufBuilder Llama() {
  GgufBuilder builder;
  builder.Add("tokenizer.ggml.model", "llama");
  builder.AddArray("tokenizer.ggml.tokens", std::vector<std::string>{"<unk>", "<s>", "</s>", "a", "b", "ab"});
  builder.AddArray("tokenizer.ggml.scores", std::vector<float>{0, 0, 0, -2, -3, -1});
  builder.AddArray("tokenizer.ggml.token_type", std::vector<int32_t>{2, 3, 3, 1, 1, 1});
  builder.Add("tokenizer.ggml.bos_token_id", uint32_t{1});
  builder.Add("tokenizer.ggml.eos_token_id", uint32_t{2});
  builder.Add("tokenizer.ggml.unknown_token_id", uint32_t{0});
  return builder;
}

GgufBuilder Gpt2() {
  GgufBuilder builder;
  builder.Add("tokenizer.ggml.model", "gpt2");
  builder.AddArray("tokenizer.ggml.tokens",
                   std::vector<std::string>{"a", "b", "ab", "<|endoftext|>", "<|im_end|>"});
  builder.AddArray("tokenizer.ggml.token_type", std::vector<int32_t>{1, 1, 1, 3, 3});
  builder.AddArray("tokenizer.ggml.merges", std::vector<std::string>{"a b"});
  builder.Add("tokenizer.ggml.eos_token_id", uint32_t{3});
  return builder;
}

void ExpectInvalid(const GgufBuilder& builder, const std::string& key, const std::string& reason = "") {
  const absl::Status status = Read(builder).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(key), HasSubstr(reason)));
}

TEST(VocabularyTest, ReadsLlama) {
  const Vocabulary vocabulary = Read(Llama()).value();
  EXPECT_EQ(vocabulary.model, TokenizerModel::kSentencePiece);
  ASSERT_EQ(vocabulary.tokens.size(), 6u);
  EXPECT_EQ(vocabulary.tokens[5].text, "ab");
  EXPECT_EQ(vocabulary.tokens[5].score, -1);
  EXPECT_EQ(vocabulary.tokens[1].type, TokenType::kControl);
  EXPECT_EQ(vocabulary.bos, 1u);
  EXPECT_EQ(vocabulary.eos, 2u);
  EXPECT_EQ(vocabulary.unknown, 0u);
  EXPECT_FALSE(vocabulary.eot.has_value());
  EXPECT_TRUE(vocabulary.add_bos);
  EXPECT_FALSE(vocabulary.add_eos);
  EXPECT_TRUE(vocabulary.add_space_prefix);
}

TEST(VocabularyTest, ReadsWhatTheFileSaysOfSpecialTokens) {
  GgufBuilder builder = Llama();
  builder.Add("tokenizer.ggml.add_bos_token", false);
  builder.Add("tokenizer.ggml.add_eos_token", true);
  builder.Add("tokenizer.ggml.add_space_prefix", false);
  builder.Add("tokenizer.ggml.eot_token_id", uint32_t{5});
  builder.Add("tokenizer.ggml.padding_token_id", uint32_t{4});
  const Vocabulary vocabulary = Read(builder).value();
  EXPECT_FALSE(vocabulary.add_bos);
  EXPECT_TRUE(vocabulary.add_eos);
  EXPECT_FALSE(vocabulary.add_space_prefix);
  EXPECT_EQ(vocabulary.eot, 5u);
  EXPECT_EQ(vocabulary.padding, 4u);
}

TEST(VocabularyTest, ReadsGpt2) {
  const Vocabulary vocabulary = Read(Gpt2()).value();
  EXPECT_EQ(vocabulary.model, TokenizerModel::kByteLevelBpe);
  EXPECT_EQ(vocabulary.pre_tokenizer, PreTokenizerKind::kGpt2);
  ASSERT_EQ(vocabulary.merges.size(), 1u);
  EXPECT_EQ(vocabulary.merges[0].left, 0u);
  EXPECT_EQ(vocabulary.merges[0].right, 1u);
  EXPECT_EQ(vocabulary.merges[0].result, 2u);
  EXPECT_FALSE(vocabulary.add_bos);
  EXPECT_FALSE(vocabulary.add_space_prefix);
  EXPECT_EQ(vocabulary.eot, 4u) << "known by its text";
}

TEST(VocabularyTest, KnowsPreTokenizersByAllTheirNames) {
  const std::pair<const char*, PreTokenizerKind> names[] = {
      {"default", PreTokenizerKind::kGpt2},    {"gpt-2", PreTokenizerKind::kGpt2},
      {"falcon", PreTokenizerKind::kFalcon},   {"llama-bpe", PreTokenizerKind::kLlama3},
      {"llama-v3", PreTokenizerKind::kLlama3}, {"llama3", PreTokenizerKind::kLlama3},
      {"qwen2", PreTokenizerKind::kQwen2}};
  for (const auto& [name, kind] : names) {
    GgufBuilder builder = Gpt2();
    builder.Add("tokenizer.ggml.pre", name);
    EXPECT_EQ(Read(builder).value().pre_tokenizer, kind) << name;
  }
}

TEST(VocabularyTest, OldFalconFilesAreFalcon) {
  GgufBuilder builder = Gpt2();
  builder.Add("general.architecture", "falcon");
  EXPECT_EQ(Read(builder).value().pre_tokenizer, PreTokenizerKind::kFalcon);
}

TEST(VocabularyTest, Llama3BeginsWithBosUnlessToldOtherwise) {
  GgufBuilder builder = Gpt2();
  builder.Add("tokenizer.ggml.pre", "llama-bpe");
  EXPECT_FALSE(Read(builder).value().add_bos) << "there is no BOS";
  builder.Add("tokenizer.ggml.bos_token_id", uint32_t{3});
  EXPECT_TRUE(Read(builder).value().add_bos);
}

TEST(VocabularyTest, NamesWhatItSupports) {
  GgufBuilder model = Llama();
  model.Remove("tokenizer.ggml.model").Add("tokenizer.ggml.model", "t5");
  const absl::Status unknown_model = Read(model).status();
  EXPECT_EQ(unknown_model.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(unknown_model.message()), AllOf(HasSubstr("tokenizer.ggml.model"), HasSubstr("t5"),
                                                          HasSubstr("llama"), HasSubstr("gpt2")));
  GgufBuilder pre = Gpt2();
  pre.Add("tokenizer.ggml.pre", "tekken");
  const absl::Status unknown_pre = Read(pre).status();
  EXPECT_EQ(unknown_pre.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(unknown_pre.message()),
              AllOf(HasSubstr("tokenizer.ggml.pre"), HasSubstr("tekken"), HasSubstr("gpt-2, "),
                    HasSubstr("falcon, llama-bpe")));
}

TEST(VocabularyTest, RefusesMissingKeys) {
  for (const char* key : {"tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.scores",
                          "tokenizer.ggml.token_type"}) {
    ExpectInvalid(Llama().Remove(key), key, "missing");
  }
  ExpectInvalid(Gpt2().Remove("tokenizer.ggml.merges"), "tokenizer.ggml.merges", "missing");
  EXPECT_TRUE(Read(Gpt2().Remove("tokenizer.ggml.token_type")).ok());
}

TEST(VocabularyTest, RefusesKeysOfAnotherType) {
  for (const char* key : {"tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.scores",
                          "tokenizer.ggml.token_type"}) {
    ExpectInvalid(Llama().Remove(key).Add(key, true), key);
  }
  ExpectInvalid(Llama().Add("tokenizer.ggml.add_bos_token", "yes"), "tokenizer.ggml.add_bos_token");
}

TEST(VocabularyTest, RefusesWrongLengthsAndTypes) {
  const std::string tokens = "tokenizer.ggml.tokens";
  const std::string scores = "tokenizer.ggml.scores";
  const std::string types = "tokenizer.ggml.token_type";
  ExpectInvalid(Llama().Remove(scores).AddArray(scores, std::vector<float>{0, 0}), scores,
                "2 entries for 6 tokens");
  ExpectInvalid(Llama().Remove(types).AddArray(types, std::vector<int32_t>{1}), types,
                "1 entries for 6 tokens");
  ExpectInvalid(Llama().Remove(types).AddArray(types, std::vector<int32_t>{2, 3, 3, 1, 1, 7}), types,
                "token 5");
  ExpectInvalid(Llama().Remove(types).AddArray(types, std::vector<int32_t>{2, 3, 3, 1, 1, 0}), types,
                "token 5");
  ExpectInvalid(Llama().Remove(types).AddArray(types, std::vector<int32_t>{2, 3, 3, 1, 1, 6}), tokens,
                "token 5");
  const float nan = std::numeric_limits<float>::quiet_NaN();
  ExpectInvalid(Llama().Remove(scores).AddArray(scores, std::vector<float>{0, 0, 0, nan, 0, 0}), scores,
                "token 3");
  ExpectInvalid(Llama()
                    .Remove(types)
                    .Remove(scores)
                    .Remove(tokens)
                    .AddArray(tokens, std::vector<std::string>{})
                    .AddArray(scores, std::vector<float>{})
                    .AddArray(types, std::vector<int32_t>{}),
                tokens, "empty");
}

TEST(VocabularyTest, RefusesIdsOutOfRange) {
  for (const char* name : {"bos", "eos", "eot", "unknown", "padding"}) {
    const std::string key = std::string("tokenizer.ggml.") + name + "_token_id";
    ExpectInvalid(Llama().Remove(key).Add(key, uint32_t{6}), key, "id 6");
    ExpectInvalid(Llama().Remove(key).Add(key, int32_t{-1}), key, "id -1");
    ExpectInvalid(Llama().Remove(key).Add(key, uint64_t{1} << 40), key, "id 1099511627776");
  }
}

TEST(VocabularyTest, RefusesBosAndEosThatDoNotExist) {
  ExpectInvalid(Gpt2().Add("tokenizer.ggml.add_bos_token", true), "tokenizer.ggml.add_bos_token");
  ExpectInvalid(Gpt2().Remove("tokenizer.ggml.eos_token_id").Add("tokenizer.ggml.add_eos_token", true),
                "tokenizer.ggml.add_eos_token");
}

TEST(VocabularyTest, RefusesInvalidMerges) {
  const std::string key = "tokenizer.ggml.merges";
  for (const char* merge : {"", " ", "a", "a ", " a", "ab", "a c", "c a", "b a", "a  b", "a b c"}) {
    ExpectInvalid(Gpt2().Remove(key).AddArray(key, std::vector<std::string>{"a b", merge}), key, "entry 1");
  }
}

TEST(VocabularyTest, ValidatesMergesMadeByHand) {
  Vocabulary vocabulary = Read(Gpt2()).value();
  vocabulary.merges.push_back({0, 1, 5});
  EXPECT_THAT(std::string(vocabulary.Validate().message()), HasSubstr("tokenizer.ggml.merges"));
  EXPECT_FALSE(Tokenizer::Create(vocabulary).ok());
}

TEST(VocabularyTest, ReadsByteTokens) {
  EXPECT_EQ(ByteOfToken("<0x00>"), 0);
  EXPECT_EQ(ByteOfToken("<0xfF>"), 255);
  for (const char* text :
       {"", "<0x0>", "<0x000>", "<0xG0>", "<0x0G>", "[0x00>", "<0x00]", "<0X00>", "<0x-1>"}) {
    EXPECT_FALSE(ByteOfToken(text).has_value()) << text;
  }
}

}  // namespace
}  // namespace isotherm::text
