#include "gateway/text/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/base/status_macros.h"

namespace isotherm::text {
namespace {

// The published patterns. SPACE is Unicode's White_Space: PCRE2's own \s has U+180E besides, which the
// reference's has not. Possessive repeats (++) match the same text as greedy ones where nothing that follows
// could make use of a shorter run, and keep the matcher from trying.
constexpr char kGpt2Words[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}++| ?\p{N}++| ?[^SPACE\p{L}\p{N}]++|[SPACE]+(?![^SPACE])|[SPACE]++)";
constexpr char kLlama3Words[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}++|\p{N}{1,3}| ?[^SPACE\p{L}\p{N}]++[\r\n]*+)"
    R"(|[SPACE]*[\r\n]++|[SPACE]+(?![^SPACE])|[SPACE]++)";
// As Llama 3's, but every digit is a word.
constexpr char kQwen2Words[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}++|\p{N}| ?[^SPACE\p{L}\p{N}]++[\r\n]*+)"
    R"(|[SPACE]*[\r\n]++|[SPACE]+(?![^SPACE])|[SPACE]++)";
constexpr char kSpace[] =
    R"(\x09-\x0d\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
// ASCII punctuation is wider than \p{P}: it has the symbols too.
constexpr char kFalconPunctuation[] = R"([\p{P}$+<=>^`|~]++|[^\p{P}$+<=>^`|~]++)";

const char* WordPattern(PreTokenizerKind kind) {
  switch (kind) {
    case PreTokenizerKind::kLlama3:
      return kLlama3Words;
    case PreTokenizerKind::kQwen2:
      return kQwen2Words;
    case PreTokenizerKind::kGpt2:
    case PreTokenizerKind::kFalcon:
      break;
  }
  return kGpt2Words;
}

struct CodeDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct MatchContextDeleter {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

std::string PcreError(int code) {
  PCRE2_UCHAR message[256];
  pcre2_get_error_message(code, message, sizeof(message));
  return reinterpret_cast<const char*>(message);
}

bool IsAsciiDigit(char byte) { return byte >= '0' && byte <= '9'; }

// Falcon looks for digits after it has written bytes as characters, so the bytes that look like Latin-1's
// superscripts and fractions count as digits, also when they are part of another character.
bool IsFalconDigit(char byte) {
  const auto value = static_cast<uint8_t>(byte);
  return IsAsciiDigit(byte) || value == 0xB2 || value == 0xB3 || value == 0xB9 ||
         (value >= 0xBC && value <= 0xBE);
}

// Cuts runs of digits from the rest, and threes of ASCII digits from the left of what they stand in.
void SplitFalconDigits(absl::string_view word, std::vector<absl::string_view>* words) {
  constexpr uint64_t kGroup = 3;
  const auto group_at = [word](uint64_t at) {
    return at + kGroup <= word.size() && IsAsciiDigit(word[at]) && IsAsciiDigit(word[at + 1]) &&
           IsAsciiDigit(word[at + 2]);
  };
  uint64_t begin = 0;
  while (begin < word.size()) {
    uint64_t end = begin + 1;
    if (group_at(begin)) {
      end = begin + kGroup;
    } else {
      const bool digits = IsFalconDigit(word[begin]);
      while (end < word.size() && IsFalconDigit(word[end]) == digits && !group_at(end)) ++end;
    }
    words->push_back(word.substr(begin, end - begin));
    begin = end;
  }
}

}  // namespace

// A compiled expression that matches something at every position.
class PreTokenizer::Pattern {
 public:
  static absl::StatusOr<std::unique_ptr<Pattern>> Compile(absl::string_view published) {
    const std::string expression = absl::StrReplaceAll(published, {{"SPACE", kSpace}});
    int error = 0;
    PCRE2_SIZE offset = 0;
    auto pattern = std::make_unique<Pattern>();
    pattern->code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                                       PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &offset, nullptr));
    if (pattern->code_ == nullptr) {
      return absl::InternalError(
          absl::StrCat("pre-tokenizer pattern at character ", offset, ": ", PcreError(error)));
    }
    // Without it (no executable memory, say) the interpreter finds the same words, more slowly.
    pcre2_jit_compile(pattern->code_.get(), PCRE2_JIT_COMPLETE);
    pattern->context_.reset(pcre2_match_context_create(nullptr));
    if (pattern->context_ == nullptr) return absl::ResourceExhaustedError("no memory for a pre-tokenizer");
    // The library's limit guards against exponential patterns; these backtrack over a run of spaces once,
    // however long it is.
    pcre2_set_match_limit(pattern->context_.get(), std::numeric_limits<uint32_t>::max());
    return pattern;
  }

  // Appends the successive matches, which cover `text`.
  absl::Status Split(absl::string_view text, std::vector<absl::string_view>* words) const {
    const std::unique_ptr<pcre2_match_data, MatchDataDeleter> data(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    if (data == nullptr) return absl::ResourceExhaustedError("no memory to split text into words");
    for (uint64_t begin = 0; begin < text.size();) {
      // Whoever encodes has checked the text once; the library would do it anew for every word.
      const int result = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                     begin, PCRE2_NO_UTF_CHECK, data.get(), context_.get());
      if (result < 0) {
        return absl::InternalError(
            absl::StrCat("splitting text into words at byte ", begin, ": ", PcreError(result)));
      }
      const uint64_t end = pcre2_get_ovector_pointer(data.get())[1];
      words->push_back(text.substr(begin, end - begin));
      begin = end;
    }
    return absl::OkStatus();
  }

 private:
  std::unique_ptr<pcre2_code, CodeDeleter> code_;
  std::unique_ptr<pcre2_match_context, MatchContextDeleter> context_;
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::~PreTokenizer() = default;

absl::StatusOr<std::unique_ptr<PreTokenizer>> PreTokenizer::Create(PreTokenizerKind kind) {
  std::unique_ptr<PreTokenizer> result(new PreTokenizer);
  result->kind_ = kind;
  ISOTHERM_ASSIGN_OR_RETURN(result->words_, Pattern::Compile(WordPattern(kind)));
  if (kind == PreTokenizerKind::kFalcon) {
    ISOTHERM_ASSIGN_OR_RETURN(result->punctuation_, Pattern::Compile(kFalconPunctuation));
  }
  return result;
}

absl::StatusOr<std::vector<absl::string_view>> PreTokenizer::Split(absl::string_view text) const {
  if (kind_ == PreTokenizerKind::kFalcon) return SplitFalcon(text);
  std::vector<absl::string_view> words;
  ISOTHERM_RETURN_IF_ERROR(words_->Split(text, &words));
  return words;
}

absl::StatusOr<std::vector<absl::string_view>> PreTokenizer::SplitFalcon(absl::string_view text) const {
  std::vector<absl::string_view> runs;
  ISOTHERM_RETURN_IF_ERROR(punctuation_->Split(text, &runs));
  std::vector<absl::string_view> candidates;
  for (const absl::string_view run : runs) ISOTHERM_RETURN_IF_ERROR(words_->Split(run, &candidates));
  std::vector<absl::string_view> words;
  for (const absl::string_view candidate : candidates) SplitFalconDigits(candidate, &words);
  return words;
}

}  // namespace isotherm::text
