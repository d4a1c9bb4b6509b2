// The same tokens as Hugging Face's tokenizers, on published vectors and on the project's own awkward
// strings.

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "tests/gateway_text/text_fixtures.h"

namespace isotherm::text {
namespace {

struct GoldenCase {
  // Of the file with the goldens.
  std::string name;
  std::string vocabulary;
  PreTokenizerKind pre_tokenizer;
  // Texts that do not survive tokens and back; see tests/reference/README.md.
  int irreversible;
};

class GoldenTest : public ::testing::TestWithParam<GoldenCase> {
 protected:
  void SetUp() override {
    const std::optional<std::string> folder = VocabularyFolder();
    if (!folder.has_value()) GTEST_SKIP() << "ISOTHERM_TEST_DATA is not set";
    path_ = absl::StrCat(*folder, "/ggml-vocab-", GetParam().vocabulary, ".gguf");
    Vocabulary vocabulary = LoadVocabulary(path_);
    vocabulary.pre_tokenizer = GetParam().pre_tokenizer;
    tokenizer_ = MakeTokenizer(std::move(vocabulary));
  }

  std::vector<uint32_t> Encode(const std::string& text) const {
    return tokenizer_->Encode(text, {.add_bos = false, .add_eos = false}).value();
  }

  std::string path_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

class PublishedVectorsTest : public GoldenTest {};

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.is_open()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_P(PublishedVectorsTest, Agree) {
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

// Counts of texts that do not survive: those with U+2581 for SentencePiece, those with a byte that Falcon has
// no token for.
const GoldenCase kSpm = {"spm", "llama-spm", PreTokenizerKind::kGpt2, 5};
const GoldenCase kGpt2 = {"gpt2", "gpt-2", PreTokenizerKind::kGpt2, 0};
const GoldenCase kFalcon = {"falcon", "falcon", PreTokenizerKind::kFalcon, 28};
// Over GPT-2's vocabulary, so there are no published vectors.
const GoldenCase kLlama3 = {"llama-bpe", "gpt-2", PreTokenizerKind::kLlama3, 0};
const GoldenCase kQwen2 = {"qwen2", "gpt-2", PreTokenizerKind::kQwen2, 0};

std::string CaseName(const ::testing::TestParamInfo<GoldenCase>& info) {
  return absl::StrReplaceAll(info.param.name, {{"-", "_"}});
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, GoldenTest, ::testing::Values(kSpm, kGpt2, kFalcon, kLlama3, kQwen2),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(Vocabularies, PublishedVectorsTest, ::testing::Values(kSpm, kGpt2, kFalcon),
                         CaseName);

// The demo model needs no data from outside the repository.
TEST(DemoModelTest, EncodesPromptsAsTransformersDoes) {
  const std::string folder = absl::StrCat(ReferenceFolder(), "/../../../models/tales");
  const auto tokenizer = MakeTokenizer(LoadVocabulary(absl::StrCat(folder, "/tales-q8_0.gguf")));
  const nlohmann::json reference = nlohmann::json::parse(ReadAll(absl::StrCat(folder, "/reference.json")));
  ASSERT_FALSE(reference["greedy"].empty());
  for (const nlohmann::json& greedy : reference["greedy"]) {
    const auto prompt = greedy["prompt"].get<std::string>();
    const auto ids = greedy["prompt_ids"].get<std::vector<uint32_t>>();
    EXPECT_EQ(tokenizer->Encode(prompt).value(), ids) << prompt;
    EXPECT_EQ(tokenizer->Decode(ids).value(), prompt);
  }
}

}  // namespace
}  // namespace isotherm::text
