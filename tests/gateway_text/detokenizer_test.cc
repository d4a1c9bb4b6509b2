#include "gateway/text/detokenizer.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "gateway/text/utf8.h"
#include "tests/gateway_text/text_fixtures.h"

namespace isotherm::text {
namespace {

uint32_t ByteId(const Tokenizer& tokenizer, int byte) {
  return IdOf(tokenizer.vocabulary(), absl::StrFormat("<0x%02X>", byte));
}

TEST(DetokenizerTest, HoldsBackHalfACharacter) {
  const auto tokenizer = MakeTokenizer(SmallSentencePieceVocabulary());
  Detokenizer detokenizer(*tokenizer);
  EXPECT_EQ(detokenizer.Push(ByteId(*tokenizer, 0xF0)), "");
  EXPECT_EQ(detokenizer.Push(ByteId(*tokenizer, 0x9F)), "");
  EXPECT_EQ(detokenizer.Push(ByteId(*tokenizer, 0x98)), "");
  EXPECT_EQ(detokenizer.Push(ByteId(*tokenizer, 0x80)), "\U0001f600");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(DetokenizerTest, ReplacesWhatCannotBecomeACharacter) {
  const auto tokenizer = MakeTokenizer(SmallSentencePieceVocabulary());
  Detokenizer detokenizer(*tokenizer);
  EXPECT_EQ(detokenizer.Push(ByteId(*tokenizer, 0xF0)), "");
  EXPECT_EQ(detokenizer.Push(IdOf(tokenizer->vocabulary(), "he")), "\uFFFDhe");
  EXPECT_EQ(detokenizer.Push(ByteId(*tokenizer, 0xE4)), "");
  EXPECT_EQ(detokenizer.Flush(), "\uFFFD");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(DetokenizerTest, StripsTheTokenizersSpaceOnce) {
  const auto tokenizer = MakeTokenizer(SmallSentencePieceVocabulary());
  const Vocabulary& vocabulary = tokenizer->vocabulary();
  Detokenizer detokenizer(*tokenizer);
  EXPECT_EQ(detokenizer.Push(*tokenizer->bos()), "");
  EXPECT_EQ(detokenizer.Push(IdOf(vocabulary, "\u2581hello")), "hello");
  EXPECT_EQ(detokenizer.Push(IdOf(vocabulary, "\u2581world")), " world");

  Detokenizer continuation(*tokenizer, {.continuation = true});
  EXPECT_EQ(continuation.Push(IdOf(vocabulary, "\u2581world")), " world");

  // The first token has no space, so there is none to strip from the second.
  Detokenizer without(*tokenizer);
  EXPECT_EQ(without.Push(IdOf(vocabulary, "hello")), "hello");
  EXPECT_EQ(without.Push(IdOf(vocabulary, "\u2581world")), " world");

  Detokenizer rendered(*tokenizer, {.render_special = true});
  EXPECT_EQ(rendered.Push(*tokenizer->bos()), "<s>");
  EXPECT_EQ(rendered.Push(IdOf(vocabulary, "\u2581hello")), " hello");
}

TEST(DetokenizerTest, KeepsTheSpaceWhereTheTokenizerPutsNone) {
  Vocabulary vocabulary = SmallSentencePieceVocabulary();
  vocabulary.add_space_prefix = false;
  const auto tokenizer = MakeTokenizer(vocabulary);
  EXPECT_EQ(Detokenizer(*tokenizer).Push(IdOf(vocabulary, "\u2581hello")), " hello");
}

TEST(DetokenizerTest, IdsOutsideTheVocabularyHaveNoText) {
  const auto tokenizer = MakeTokenizer(SmallByteLevelVocabulary());
  Detokenizer detokenizer(*tokenizer, {.render_special = true});
  EXPECT_EQ(detokenizer.Push(static_cast<uint32_t>(tokenizer->vocabulary_size())), "");
  EXPECT_EQ(detokenizer.Push(0xFFFFFFFF), "");
}

TEST(DetokenizerTest, AnyTokensGiveUtf8ThatAddsUpToDecode) {
  std::mt19937 random(11);
  for (const Vocabulary& vocabulary : {SmallSentencePieceVocabulary(), SmallByteLevelVocabulary()}) {
    const auto tokenizer = MakeTokenizer(vocabulary);
    for (int round = 0; round < 20000; ++round) {
      const DecodeOptions options = {.render_special = random() % 2 == 0, .continuation = random() % 2 == 0};
      Detokenizer detokenizer(*tokenizer, options);
      std::vector<uint32_t> ids;
      std::string streamed;
      for (uint64_t length = random() % 12; length > 0; --length) {
        ids.push_back(static_cast<uint32_t>(random() % tokenizer->vocabulary_size()));
        const std::string text = detokenizer.Push(ids.back());
        ASSERT_EQ(ValidUtf8Prefix(text), text.size());
        streamed += text;
      }
      streamed += detokenizer.Flush();
      ASSERT_EQ(ValidUtf8Prefix(streamed), streamed.size());
      ASSERT_EQ(streamed, tokenizer->Decode(ids, options).value());
    }
  }
}

}  // namespace
}  // namespace isotherm::text
