#ifndef ISOTHERM_TESTS_GATEWAY_TEXT_TEXT_FIXTURES_H_
#define ISOTHERM_TESTS_GATEWAY_TEXT_TEXT_FIXTURES_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gateway/text/tokenizer.h"
#include "gateway/text/vocabulary.h"

namespace isotherm::text {

// A llama vocabulary of 256 bytes, letters, a few words and special tokens, small enough to reason about.
Vocabulary SmallSentencePieceVocabulary();
// The same over GPT-2's byte alphabet, complete but for the byte 0x07.
Vocabulary SmallByteLevelVocabulary();

// The id of the token with this text; aborts if there is none.
uint32_t IdOf(const Vocabulary& vocabulary, const std::string& text);

// Aborts on failure.
std::unique_ptr<Tokenizer> MakeTokenizer(Vocabulary vocabulary);

// The folder of llama.cpp's vocabulary-only files under ISOTHERM_TEST_DATA; nothing if that is not set.
std::optional<std::string> VocabularyFolder();
// tests/reference/data.
std::string ReferenceFolder();
// Aborts on failure.
Vocabulary LoadVocabulary(const std::string& path);

// The UTF-8 of a code point that is no surrogate.
std::string Utf8Of(char32_t code_point);

}  // namespace isotherm::text

#endif  // ISOTHERM_TESTS_GATEWAY_TEXT_TEXT_FIXTURES_H_
