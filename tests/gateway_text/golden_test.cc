// The same tokens as Hugging Face's tokenizers, on published vectors and on the project's own awkward
// strings.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/gateway_text/text_fixtures.h"

namespace isotherm::text {
namespace {

struct GoldenCase {
  std::string name;
  std::string vocabulary;
  // Published vectors exist for the vocabulary with its own pre-tokenizer.
  bool published = true;
  PreTokenizerKind pre_tokenizer = PreTokenizerKind::kGpt2;
  // Texts that do not survive tokens and back; see tests/reference/README.md.
  int irreversible = 0;
};

class GoldenTest : public ::testing::TestWithParam<GoldenCase> {
 protected:
  void SetUp() override {
    const std::optional<std::string> folder = VocabularyFolder();
    if (!folder.has_value()) GTEST_SKIP() << "ISOTHERM_TEST_DATA is not set";
    path_ = absl::StrCat(*folder, "/ggml-vocab-", GetParam().vocabulary, ".gguf");
    Vocabulary vocabulary = LoadVocabulary(path_);
    if (vocabulary.model == TokenizerModel::kByteLevelBpe)
      vocabulary.pre_tokenizer = GetParam().pre_tokenizer;
    tokenizer_ = MakeTokenizer(std::move(vocabulary));
  }

  std::vector<uint32_t> Encode(const std::string& text) const {
    return tokenizer_->Encode(text, {.add_bos = false, .add_eos = false}).value();
  }

  std::string path_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.is_open()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_P(GoldenTest, AgreesWithPublishedVectors) {
  if (!GetParam().published)
    GTEST_SKIP() << "no vectors are published for this pre-tokenizer over this vocabulary";
  std::vector<std::string> texts =
      absl::StrSplit(ReadAll(path_ + ".inp"), absl::ByString("\n__ggml_vocab_test__\n"));
  ASSERT_EQ(texts.back(), "");
  texts.pop_back();
  std::istringstream lines(ReadAll(path_ + ".out"));
  for (const std::string& text : texts) {
    std::string line;
    ASSERT_TRUE(std::getline(lines, line));
    std::istringstream numbers(line);
    const std::vector<uint32_t> expected{std::istream_iterator<uint32_t>(numbers), {}};
    EXPECT_EQ(Encode(text), expected) << absl::CHexEscape(text);
  }
  EXPECT_GT(texts.size(), 40u);
}

TEST_P(GoldenTest, AgreesWithHuggingFace) {
  std::ifstream lines(absl::StrCat(ReferenceFolder(), "/tokenizer_", GetParam().name, ".jsonl"));
  int compared = 0;
  int irreversible = 0;
  for (std::string line; std::getline(lines, line); ++compared) {
    const nlohmann::json golden = nlohmann::json::parse(line);
    const auto text = golden["text"].get<std::string>();
    const auto ids = golden["ids"].get<std::vector<uint32_t>>();
    EXPECT_EQ(Encode(text), ids) << absl::CHexEscape(text.substr(0, 100));
    if (tokenizer_->Decode(ids).value() != text) ++irreversible;
  }
  EXPECT_GT(compared, 600);
  EXPECT_EQ(irreversible, GetParam().irreversible);
}

INSTANTIATE_TEST_SUITE_P(
    Vocabularies, GoldenTest,
    ::testing::Values(GoldenCase{"spm", "llama-spm", true, PreTokenizerKind::kGpt2, 5},
                      GoldenCase{"gpt2", "gpt-2"},
                      GoldenCase{"falcon", "falcon", true, PreTokenizerKind::kFalcon, 28},
                      GoldenCase{"llama-bpe", "gpt-2", false, PreTokenizerKind::kLlama3}),
    [](const ::testing::TestParamInfo<GoldenCase>& info) {
      std::string name = info.param.name;
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

}  // namespace
}  // namespace isotherm::text
