#include "tests/gateway_text/text_fixtures.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/gguf/file.h"

namespace isotherm::text {
namespace {

template <typename T>
T ValueOrDie(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "%s\n", value.status().ToString().c_str());
    std::abort();
  }
  return *std::move(value);
}

// How byte-level BPE writes a byte; see gateway/text/byte_alphabet.h.
std::string Letter(int byte) {
  static const std::vector<char32_t>* const kLetters = [] {
    auto* letters = new std::vector<char32_t>(256);
    char32_t next = 0x100;
    for (char32_t code = 0; code < 256; ++code) {
      const bool visible = (code > 0x20 && code < 0x7F) || (code > 0xA0 && code != 0xAD);
      (*letters)[code] = visible ? code : next++;
    }
    return letters;
  }();
  return Utf8Of((*kLetters)[byte]);
}

void AddMerge(Vocabulary* vocabulary, const std::string& left, const std::string& right) {
  vocabulary->tokens.push_back({left + right});
  vocabulary->merges.push_back(
      {IdOf(*vocabulary, left), IdOf(*vocabulary, right), IdOf(*vocabulary, left + right)});
}

}  // namespace

Vocabulary SmallSentencePieceVocabulary() {
  Vocabulary vocabulary;
  vocabulary.model = TokenizerModel::kSentencePiece;
  vocabulary.add_space_prefix = true;
  std::vector<Token>& tokens = vocabulary.tokens;
  tokens = {
      {"<unk>", 0, TokenType::kUnknown}, {"<s>", 0, TokenType::kControl}, {"</s>", 0, TokenType::kControl}};
  for (int byte = 0; byte < 256; ++byte) {
    tokens.push_back({absl::StrFormat("<0x%02X>", byte), 0, TokenType::kByte});
  }
  tokens.push_back({"<|turn|>", 0, TokenType::kControl});
  tokens.push_back({"<|turn|>end", 0, TokenType::kControl});
  tokens.push_back({"\u2581\u2581\u2581", 0, TokenType::kUserDefined});
  float score = -1;
  for (const char* word :
       {"\u2581a", "he", "ll", "hell", "hello", "\u2581hello", "wor", "ld", "world", "\u2581world"}) {
    tokens.push_back({word, score--});
  }
  for (char letter = 'a'; letter <= 'z'; ++letter) tokens.push_back({std::string(1, letter), score--});
  tokens.push_back({"\u2581", score--});
  vocabulary.unknown = 0;
  vocabulary.bos = 1;
  vocabulary.eos = 2;
  vocabulary.eot = IdOf(vocabulary, "<|turn|>end");
  vocabulary.add_bos = true;
  return vocabulary;
}

Vocabulary SmallByteLevelVocabulary() {
  constexpr int kMissing = 0x07;
  Vocabulary vocabulary;
  vocabulary.model = TokenizerModel::kByteLevelBpe;
  for (int byte = 0; byte < 256; ++byte) {
    if (byte != kMissing) vocabulary.tokens.push_back({Letter(byte)});
  }
  AddMerge(&vocabulary, "h", "e");
  AddMerge(&vocabulary, "l", "l");
  AddMerge(&vocabulary, "he", "ll");
  AddMerge(&vocabulary, "hell", "o");
  AddMerge(&vocabulary, Letter(' '), "hello");
  AddMerge(&vocabulary, "a", "a");
  AddMerge(&vocabulary, "aa", "aa");
  vocabulary.tokens.push_back({"<|endoftext|>", 0, TokenType::kControl});
  vocabulary.tokens.push_back({"<|turn|>", 0, TokenType::kControl});
  vocabulary.tokens.push_back({"<|turn|>end", 0, TokenType::kControl});
  vocabulary.tokens.push_back({"   ", 0, TokenType::kUserDefined});
  vocabulary.bos = vocabulary.eos = IdOf(vocabulary, "<|endoftext|>");
  vocabulary.eot = IdOf(vocabulary, "<|turn|>end");
  return vocabulary;
}

uint32_t IdOf(const Vocabulary& vocabulary, const std::string& text) {
  for (uint32_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (vocabulary.tokens[id].text == text) return id;
  }
  std::fprintf(stderr, "no token is \"%s\"\n", text.c_str());
  std::abort();
}

std::unique_ptr<Tokenizer> MakeTokenizer(Vocabulary vocabulary) {
  return ValueOrDie(Tokenizer::Create(std::move(vocabulary)));
}

std::optional<std::string> VocabularyFolder() {
  const char* data = std::getenv("ISOTHERM_TEST_DATA");
  if (data == nullptr || *data == '\0') return std::nullopt;
  return absl::StrCat(data, "/vocab");
}

std::string ReferenceFolder() {
  const char* source = std::getenv("ISOTHERM_SOURCE_DIR");
  return absl::StrCat(source == nullptr ? "." : source, "/tests/reference/data");
}

Vocabulary LoadVocabulary(const std::string& path) {
  return ValueOrDie(Vocabulary::FromFile(*ValueOrDie(gguf::File::Open(path))));
}

std::string Utf8Of(char32_t code_point) {
  const auto byte = [](char32_t value) { return static_cast<char>(value); };
  if (code_point < 0x80) return {byte(code_point)};
  const char last = byte(0x80 | (code_point & 0x3F));
  if (code_point < 0x800) return {byte(0xC0 | code_point >> 6), last};
  const char third = byte(0x80 | (code_point >> 6 & 0x3F));
  if (code_point < 0x10000) return {byte(0xE0 | code_point >> 12), third, last};
  return {byte(0xF0 | code_point >> 18), byte(0x80 | (code_point >> 12 & 0x3F)), third, last};
}

}  // namespace isotherm::text
