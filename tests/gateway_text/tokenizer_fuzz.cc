// Any text, by any tokenizer, also one made of the fuzzer's bytes: a status or tokens that keep their
// promises.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "gateway/text/detokenizer.h"
#include "gateway/text/stop.h"
#include "gateway/text/tokenizer.h"
#include "gateway/text/utf8.h"
#include "tests/gateway_text/text_fixtures.h"

namespace isotherm::text {
namespace {

void Check(bool condition) {
  if (!condition) std::abort();
}

// Hands out the fuzzer's bytes; zeros when they are used up.
class Bytes {
 public:
  explicit Bytes(absl::string_view rest) : rest_(rest) {}

  uint8_t Next() {
    if (rest_.empty()) return 0;
    const auto byte = static_cast<uint8_t>(rest_.front());
    rest_.remove_prefix(1);
    return byte;
  }
  std::string Take(uint64_t most) {
    const std::string taken(rest_.substr(0, most));
    rest_.remove_prefix(taken.size());
    return taken;
  }
  absl::string_view rest() const { return rest_; }

 private:
  absl::string_view rest_;
};

Vocabulary ArbitraryVocabulary(Bytes* bytes) {
  Vocabulary vocabulary;
  vocabulary.model = static_cast<TokenizerModel>(bytes->Next() % 2);
  vocabulary.pre_tokenizer = static_cast<PreTokenizerKind>(bytes->Next() % 3);
  vocabulary.add_space_prefix = bytes->Next() % 2 == 0;
  for (int count = bytes->Next() % 32; count > 0; --count) {
    const auto type = static_cast<TokenType>(1 + bytes->Next() % 6);
    const auto score = static_cast<float>(bytes->Next() % 8);
    vocabulary.tokens.push_back({bytes->Take(bytes->Next() % 7), score, type});
  }
  for (int count = bytes->Next() % 16; count > 0; --count) {
    vocabulary.merges.push_back({bytes->Next(), bytes->Next(), bytes->Next()});
  }
  vocabulary.unknown = bytes->Next();
  vocabulary.eos = bytes->Next();
  return vocabulary;
}

const Tokenizer& SmallTokenizer(uint8_t choice) {
  static const std::vector<std::unique_ptr<Tokenizer>>* const kTokenizers = [] {
    auto* tokenizers = new std::vector<std::unique_ptr<Tokenizer>>;
    tokenizers->push_back(MakeTokenizer(SmallSentencePieceVocabulary()));
    for (const auto kind : {PreTokenizerKind::kGpt2, PreTokenizerKind::kFalcon, PreTokenizerKind::kLlama3,
                            PreTokenizerKind::kQwen2}) {
      Vocabulary vocabulary = SmallByteLevelVocabulary();
      vocabulary.pre_tokenizer = kind;
      tokenizers->push_back(MakeTokenizer(std::move(vocabulary)));
    }
    return tokenizers;
  }();
  return *(*kTokenizers)[choice % kTokenizers->size()];
}

std::string Stream(const Tokenizer& tokenizer, const std::vector<uint32_t>& ids,
                   const DecodeOptions& options) {
  Detokenizer detokenizer(tokenizer, options);
  std::string text;
  for (const uint32_t id : ids) {
    const std::string more = detokenizer.Push(id);
    Check(ValidUtf8Prefix(more) == more.size());
    text += more;
  }
  return text + detokenizer.Flush();
}

void TryText(const Tokenizer& tokenizer, absl::string_view text, uint8_t choices) {
  const EncodeOptions encode = {.add_bos = false, .parse_special = (choices & 1) != 0};
  const DecodeOptions decode = {.render_special = (choices & 2) != 0, .continuation = (choices & 4) != 0};
  const auto ids = tokenizer.Encode(text, encode);
  Check(ids.ok() == (ValidUtf8Prefix(text) == text.size()));
  if (!ids.ok()) return;
  for (const uint32_t id : *ids) {
    Check(id < tokenizer.vocabulary_size());
    const bool control = tokenizer.vocabulary().tokens[id].type == TokenType::kControl;
    // An arbitrary vocabulary may call a control token its unknown one.
    Check(!control || encode.parse_special || id == tokenizer.vocabulary().unknown);
  }
  const auto decoded = tokenizer.Decode(*ids, decode);
  Check(decoded.ok() && Stream(tokenizer, *ids, decode) == *decoded);
}

void TryStops(const std::string& first, const std::string& second, absl::string_view text, uint64_t cut) {
  StopMatcher whole({first, second});
  StopMatcher pieces({first, second});
  std::string at_once = whole.Push(text);
  at_once += whole.Flush();
  const absl::string_view head = text.substr(0, cut);
  std::string in_pieces = pieces.Push(head);
  in_pieces += pieces.Push(text.substr(head.size()));
  in_pieces += pieces.Flush();
  Check(at_once == in_pieces && whole.match().has_value() == pieces.match().has_value());
  Check(text.substr(0, at_once.size()) == at_once);
  Check(whole.match().has_value() ? whole.match()->position == at_once.size() : at_once == text);
}

}  // namespace
}  // namespace isotherm::text

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace isotherm::text;
  Bytes bytes(absl::string_view(reinterpret_cast<const char*>(data), size));
  const uint8_t choices = bytes.Next();
  const uint8_t tokenizer = bytes.Next();
  if (tokenizer < 64) {
    TryText(SmallTokenizer(tokenizer), bytes.rest(), choices);
  } else if (tokenizer < 192) {
    const auto arbitrary = Tokenizer::Create(ArbitraryVocabulary(&bytes));
    if (arbitrary.ok()) TryText(**arbitrary, bytes.rest(), choices);
  } else {
    const std::string first = bytes.Take(choices % 8);
    const std::string second = bytes.Take(choices / 8 % 8);
    TryStops(first, second, bytes.rest(), tokenizer - 192);
  }
  return 0;
}
