#include "gateway/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gateway/text/byte_alphabet.h"
#include "tests/gateway_text/text_fixtures.h"

namespace isotherm::text {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

std::vector<uint32_t> Ids(const Tokenizer& tokenizer, const std::vector<std::string>& texts) {
  std::vector<uint32_t> ids;
  for (const std::string& text : texts) ids.push_back(IdOf(tokenizer.vocabulary(), text));
  return ids;
}

std::vector<Vocabulary> SmallVocabularies() {
  std::vector<Vocabulary> vocabularies = {SmallSentencePieceVocabulary(), SmallByteLevelVocabulary()};
  for (const PreTokenizerKind kind :
       {PreTokenizerKind::kFalcon, PreTokenizerKind::kLlama3, PreTokenizerKind::kQwen2}) {
    vocabularies.push_back(SmallByteLevelVocabulary());
    vocabularies.back().pre_tokenizer = kind;
  }
  return vocabularies;
}

// A user-defined token in the middle of a text puts a space behind it, see EverySectionBeginsWithASpace.
Vocabulary WithoutUserDefined(Vocabulary vocabulary) {
  for (Token& token : vocabulary.tokens) {
    if (token.type == TokenType::kUserDefined) token.type = TokenType::kUnused;
  }
  return vocabulary;
}

TEST(TokenizerTest, AddsBosAndEosAsTheFileAsksOrTheCaller) {
  Vocabulary vocabulary = SmallSentencePieceVocabulary();
  const auto tokenizer = MakeTokenizer(vocabulary);
  const uint32_t a = IdOf(vocabulary, "\u2581a");
  EXPECT_THAT(tokenizer->Encode("a").value(), ElementsAre(1, a));
  EXPECT_THAT(tokenizer->Encode("a", {.add_bos = false}).value(), ElementsAre(a));
  EXPECT_THAT(tokenizer->Encode("a", {.add_eos = true}).value(), ElementsAre(1, a, 2));
  EXPECT_THAT(tokenizer->Encode("").value(), ElementsAre(1));
  vocabulary.add_bos = false;
  vocabulary.add_eos = true;
  EXPECT_THAT(MakeTokenizer(vocabulary)->Encode("a").value(), ElementsAre(a, 2));
}

TEST(TokenizerTest, RefusesBosAndEosThatDoNotExist) {
  Vocabulary vocabulary = SmallByteLevelVocabulary();
  vocabulary.bos = vocabulary.eos = std::nullopt;
  const auto tokenizer = MakeTokenizer(vocabulary);
  EXPECT_EQ(tokenizer->Encode("a", {.add_bos = true}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(tokenizer->Encode("a", {.add_eos = true}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(TokenizerTest, RefusesTextThatIsNotUtf8) {
  for (const Vocabulary& vocabulary : SmallVocabularies()) {
    const auto tokenizer = MakeTokenizer(vocabulary);
    const absl::Status status = tokenizer->Encode("caf\u00e9 \xFF!").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("at byte 6"));
    EXPECT_FALSE(tokenizer->Encode("\xED\xA0\x80").ok()) << "a surrogate";
    EXPECT_FALSE(tokenizer->Encode("\xF0\x9F\x98").ok()) << "half a character";
  }
}

TEST(TokenizerTest, ControlTokensArePlainTextUnlessParsed) {
  for (const Vocabulary& vocabulary : SmallVocabularies()) {
    const auto tokenizer = MakeTokenizer(vocabulary);
    const std::string text = "hello<|turn|>";
    const std::vector<uint32_t> plain = tokenizer->Encode(text, {.add_bos = false}).value();
    for (const uint32_t id : plain) EXPECT_NE(vocabulary.tokens[id].type, TokenType::kControl);
    EXPECT_EQ(tokenizer->Decode(plain).value(), text);
    const std::vector<uint32_t> parsed =
        tokenizer->Encode(text, {.add_bos = false, .parse_special = true}).value();
    EXPECT_EQ(parsed.back(), IdOf(vocabulary, "<|turn|>"));
    EXPECT_EQ(tokenizer->Decode(parsed).value(), "hello");
    EXPECT_EQ(tokenizer->Decode(parsed, {.render_special = true}).value(), text);
  }
}

TEST(TokenizerTest, TheLongestControlTokenWins) {
  const auto tokenizer = MakeTokenizer(SmallByteLevelVocabulary());
  EXPECT_THAT(tokenizer->Encode("<|turn|>end<|turn|>en", {.parse_special = true}).value(),
              ElementsAreArray(Ids(*tokenizer, {"<|turn|>end", "<|turn|>", "e", "n"})));
}

TEST(TokenizerTest, MergesNeverMakeControlTokens) {
  Vocabulary vocabulary = SmallByteLevelVocabulary();
  const uint32_t x = IdOf(vocabulary, "x");
  vocabulary.tokens.push_back({"xx", 0, TokenType::kControl});
  vocabulary.merges.push_back({x, x, IdOf(vocabulary, "xx")});
  vocabulary.pre_tokenizer = PreTokenizerKind::kLlama3;
  EXPECT_THAT(MakeTokenizer(vocabulary)->Encode("xx").value(), ElementsAre(x, x));
}

TEST(TokenizerTest, UserDefinedTokensAlwaysMatch) {
  const auto byte_level = MakeTokenizer(SmallByteLevelVocabulary());
  EXPECT_THAT(byte_level->Encode("a    a").value(),
              ElementsAreArray(Ids(*byte_level, {"a", "   ", "\u0120", "a"})));
  const auto sentencepiece = MakeTokenizer(SmallSentencePieceVocabulary());
  EXPECT_THAT(sentencepiece->Encode("a   ", {.add_bos = false}).value(),
              ElementsAreArray(Ids(*sentencepiece, {"\u2581a", "\u2581\u2581\u2581"})));
  EXPECT_EQ(sentencepiece->PieceBytes(IdOf(sentencepiece->vocabulary(), "\u2581\u2581\u2581")), "   ");
}

// As Hugging Face's LlamaTokenizer does by default: every stretch of text between special tokens begins with
// a space.
TEST(TokenizerTest, EverySectionBeginsWithASpace) {
  Vocabulary vocabulary = SmallSentencePieceVocabulary();
  EXPECT_THAT(
      MakeTokenizer(vocabulary)->Encode("hello</s>hello", {.add_bos = false, .parse_special = true}).value(),
      ElementsAreArray(Ids(*MakeTokenizer(vocabulary), {"\u2581hello", "</s>", "\u2581hello"})));
  vocabulary.add_space_prefix = false;
  EXPECT_THAT(MakeTokenizer(vocabulary)->Encode("hello hello", {.add_bos = false}).value(),
              ElementsAreArray(Ids(*MakeTokenizer(vocabulary), {"hello", "\u2581hello"})));
}

TEST(TokenizerTest, Llama3TakesWholeWordsWhateverTheMerges) {
  Vocabulary vocabulary = SmallByteLevelVocabulary();
  vocabulary.tokens.push_back({"zebra"});
  EXPECT_EQ(MakeTokenizer(vocabulary)->Encode("zebra").value().size(), 5u);
  vocabulary.pre_tokenizer = PreTokenizerKind::kLlama3;
  EXPECT_THAT(MakeTokenizer(vocabulary)->Encode("zebra").value(), ElementsAre(IdOf(vocabulary, "zebra")));
}

TEST(TokenizerTest, BytesWithoutATokenYieldNone) {
  const auto tokenizer = MakeTokenizer(SmallByteLevelVocabulary());
  EXPECT_THAT(tokenizer
                  ->Encode("h\x07"
                           "e")
                  .value(),
              ElementsAreArray(Ids(*tokenizer, {"h", "e"})));
}

TEST(TokenizerTest, CharactersWithoutATokenAreUnknownWhereThereAreNoBytes) {
  Vocabulary vocabulary;
  vocabulary.tokens = {{"<unk>", 0, TokenType::kUnknown}, {"a", -1}, {"b", -2}};
  const auto tokenizer = MakeTokenizer(vocabulary);
  EXPECT_THAT(tokenizer->Encode("ax\u00e9yb").value(), ElementsAre(1, 0, 2));
  EXPECT_EQ(tokenizer->Decode({1, 0, 2}).value(), "ab");
  EXPECT_EQ(tokenizer->Decode({1, 0, 2}, {.render_special = true}).value(), "a<unk>b");
  vocabulary.bos = 0;
  EXPECT_THAT(MakeTokenizer(vocabulary)->Encode("x", {.add_bos = true}).value(), ElementsAre(0, 0));
  vocabulary.tokens[0].type = TokenType::kNormal;
  EXPECT_THAT(std::string(Tokenizer::Create(vocabulary).status().message()),
              HasSubstr("tokenizer.ggml.unknown_token_id"));
}

TEST(TokenizerTest, OfTokensWithTheSameTextTheFirstCounts) {
  Vocabulary vocabulary = SmallSentencePieceVocabulary();
  const uint32_t first = IdOf(vocabulary, "hello");
  vocabulary.tokens.push_back({"hello", 100});
  vocabulary.tokens.push_back({"", 100});
  vocabulary.add_space_prefix = vocabulary.add_bos = false;
  EXPECT_THAT(MakeTokenizer(vocabulary)->Encode("hello").value(), ElementsAre(first));
}

TEST(TokenizerTest, KnowsWhereSequencesEnd) {
  const auto tokenizer = MakeTokenizer(SmallSentencePieceVocabulary());
  EXPECT_TRUE(tokenizer->IsEndOfSequence(2));
  EXPECT_TRUE(tokenizer->IsEndOfSequence(IdOf(tokenizer->vocabulary(), "<|turn|>end")));
  EXPECT_FALSE(tokenizer->IsEndOfSequence(1));
  Vocabulary endless = SmallSentencePieceVocabulary();
  endless.eos = endless.eot = std::nullopt;
  EXPECT_FALSE(MakeTokenizer(endless)->IsEndOfSequence(0));
}

TEST(TokenizerTest, DecodeRefusesIdsOutsideTheVocabulary) {
  const auto tokenizer = MakeTokenizer(SmallByteLevelVocabulary());
  const auto size = static_cast<uint32_t>(tokenizer->vocabulary_size());
  EXPECT_TRUE(tokenizer->Decode({size - 1}).ok());
  EXPECT_EQ(tokenizer->Decode({0, size}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(tokenizer->PieceBytes(size), "");
}

TEST(TokenizerTest, TextSurvivesTokensAndBack) {
  std::mt19937 random(5);
  for (const Vocabulary& vocabulary : SmallVocabularies()) {
    const auto tokenizer = MakeTokenizer(WithoutUserDefined(vocabulary));
    for (int round = 0; round < 3000; ++round) {
      std::string text;
      for (uint64_t length = random() % 20; length > 0; --length) {
        // As many short codes as long ones, spaces and the merges' letters often.
        const char32_t code =
            random() % 3 == 0 ? U" \nhelo1'"[random() % 8] : random() % (1u << (random() % 21 + 1));
        // The byte 0x07 has no token, and U+2581 is a space to SentencePiece.
        const bool survives =
            code != 0x07 && code != 0x2581 && code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF);
        if (survives) text += Utf8Of(code);
      }
      const std::vector<uint32_t> ids = tokenizer->Encode(text).value();
      ASSERT_EQ(tokenizer->Decode(ids).value(), text);
    }
  }
}

TEST(TokenizerTest, EveryByteIsInTheByteLevelAlphabet) {
  std::vector<bool> seen(256, false);
  for (char32_t code = 0; code < 0x200; ++code) {
    const std::optional<std::string> bytes = BytesOfByteLevelToken(Utf8Of(code));
    if (!bytes.has_value()) continue;
    ASSERT_EQ(bytes->size(), 1u);
    EXPECT_FALSE(seen[static_cast<uint8_t>((*bytes)[0])]);
    seen[static_cast<uint8_t>((*bytes)[0])] = true;
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), true), 256);
  EXPECT_EQ(BytesOfByteLevelToken("\u0120"), " ");
  EXPECT_EQ(BytesOfByteLevelToken("\u00e9\u0100"), std::string("\xE9\0", 2));
  EXPECT_FALSE(BytesOfByteLevelToken(" ").has_value());
  EXPECT_FALSE(BytesOfByteLevelToken("a\u4f60").has_value());
}

// Anything quadratic in here would take longer than the test may.
TEST(TokenizerTest, AMegabyteOfAnythingIsBounded) {
  const std::vector<std::string> hardest = {" ", "x"};
  const std::vector<std::string> others = {"a",       "\n",     "\r\n",   "1",      "!",          "<",
                                           "<|turn|", "\u00e9", "\u0301", "\u2003", "\U0001f600", " a",
                                           "  \n",    "'s",     "hello",  "\u00bd1"};
  for (const Vocabulary& vocabulary : SmallVocabularies()) {
    const auto tokenizer = MakeTokenizer(WithoutUserDefined(vocabulary));
    const auto check = [&tokenizer](const std::string& unit, uint64_t length) {
      std::string text;
      while (text.size() < length) text += unit;
      const auto ids = tokenizer->Encode(text, {.add_bos = false, .parse_special = true});
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_TRUE(tokenizer->Decode(*ids).value() == text) << unit;
    };
    for (const std::string& unit : hardest) check(unit, 1 << 20);
    for (const std::string& unit : others) check(unit, 1 << 17);
  }
}

TEST(TokenizerTest, ThreadsShareOneTokenizer) {
  const auto tokenizer = MakeTokenizer(SmallByteLevelVocabulary());
  const std::vector<uint32_t> expected = tokenizer->Encode("hello, hello!").value();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 500; ++round)
        EXPECT_EQ(tokenizer->Encode("hello, hello!").value(), expected);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace isotherm::text
