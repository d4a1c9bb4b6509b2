// The same tokens as the SentencePiece library, on vocabularies made at random.

#include "gateway/text/sentencepiece_bpe.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "tests/gateway_text/sentencepiece_oracle.h"
#include "tests/gateway_text/text_fixtures.h"

namespace isotherm::text {
namespace {

constexpr const char* kLetters[] = {"a", "b", "c", "\u00e9", "\u4f60", " ", "\u2581"};

std::string RandomText(std::mt19937* random, uint64_t letters) {
  std::string text;
  for (; letters > 0; --letters) text += kLetters[(*random)() % std::size(kLetters)];
  return text;
}

// Short pieces over the letters, some of them missing, with few scores so that there are many ties.
Vocabulary RandomVocabulary(std::mt19937* random, bool byte_fallback) {
  Vocabulary vocabulary;
  vocabulary.add_space_prefix = (*random)() % 2 == 0;
  vocabulary.tokens.push_back({"<unk>", 0, TokenType::kUnknown});
  for (int byte = 0; byte_fallback && byte < 256; ++byte) {
    vocabulary.tokens.push_back({absl::StrFormat("<0x%02X>", byte), 0, TokenType::kByte});
  }
  absl::flat_hash_set<std::string> seen;
  for (int i = 0; i < 60; ++i) {
    std::string text = RandomText(random, 1 + (*random)() % 4);
    if (text.find(' ') != std::string::npos || !seen.insert(text).second) continue;
    const TokenType type = (*random)() % 8 == 0 ? TokenType::kUnused : TokenType::kNormal;
    vocabulary.tokens.push_back({std::move(text), -static_cast<float>((*random)() % 20), type});
  }
  return vocabulary;
}

SentencePieceOracle MakeOracle(const Vocabulary& vocabulary, bool byte_fallback) {
  std::vector<SentencePieceOracle::Piece> pieces;
  for (const Token& token : vocabulary.tokens) {
    pieces.push_back({token.text, token.score, static_cast<int>(token.type)});
  }
  return SentencePieceOracle(pieces, byte_fallback, vocabulary.add_space_prefix);
}

TEST(SentencePieceBpeTest, AgreesWithTheLibrary) {
  std::mt19937 random(13);
  for (int round = 0; round < 400; ++round) {
    const bool byte_fallback = round % 2 == 0;
    const Vocabulary vocabulary = RandomVocabulary(&random, byte_fallback);
    const auto bpe = SentencePieceBpe::Create(vocabulary).value();
    const SentencePieceOracle oracle = MakeOracle(vocabulary, byte_fallback);
    for (int i = 0; i < 50; ++i) {
      const std::string text = RandomText(&random, 1 + random() % 40);
      std::vector<uint32_t> ids;
      ASSERT_TRUE(bpe->Encode(text, &ids).ok());
      const std::vector<int> expected = oracle.Encode(text);
      ASSERT_EQ(ids, std::vector<uint32_t>(expected.begin(), expected.end())) << absl::CHexEscape(text);
    }
  }
}

TEST(SentencePieceBpeTest, AgreesWithTheLibraryOnARealVocabulary) {
  const std::optional<std::string> folder = VocabularyFolder();
  if (!folder.has_value()) GTEST_SKIP() << "ISOTHERM_TEST_DATA is not set";
  const Vocabulary vocabulary = LoadVocabulary(*folder + "/ggml-vocab-llama-spm.gguf");
  const auto bpe = SentencePieceBpe::Create(vocabulary).value();
  const SentencePieceOracle oracle = MakeOracle(vocabulary, true);
  std::mt19937 random(17);
  for (int round = 0; round < 2000; ++round) {
    // Pieces of real words, joined at random.
    std::string text;
    for (int i = 0; i < 10; ++i) {
      const Token& token = vocabulary.tokens[random() % vocabulary.tokens.size()];
      if (token.type == TokenType::kNormal) text += token.text;
    }
    std::vector<uint32_t> ids;
    ASSERT_TRUE(bpe->Encode(text, &ids).ok());
    const std::vector<int> expected = oracle.Encode(text);
    ASSERT_EQ(ids, std::vector<uint32_t>(expected.begin(), expected.end())) << absl::CHexEscape(text);
  }
}

}  // namespace
}  // namespace isotherm::text
