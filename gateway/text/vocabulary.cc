#include "gateway/text/vocabulary.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"

namespace isotherm::text {
namespace {

constexpr char kModel[] = "tokenizer.ggml.model";
constexpr char kPre[] = "tokenizer.ggml.pre";
constexpr char kTokens[] = "tokenizer.ggml.tokens";
constexpr char kScores[] = "tokenizer.ggml.scores";
constexpr char kTokenTypes[] = "tokenizer.ggml.token_type";
constexpr char kMerges[] = "tokenizer.ggml.merges";
constexpr char kBos[] = "tokenizer.ggml.bos_token_id";
constexpr char kEos[] = "tokenizer.ggml.eos_token_id";
constexpr char kEot[] = "tokenizer.ggml.eot_token_id";
constexpr char kUnknown[] = "tokenizer.ggml.unknown_token_id";
constexpr char kPadding[] = "tokenizer.ggml.padding_token_id";
constexpr char kAddBos[] = "tokenizer.ggml.add_bos_token";
constexpr char kAddEos[] = "tokenizer.ggml.add_eos_token";
constexpr char kAddSpacePrefix[] = "tokenizer.ggml.add_space_prefix";

// Names of each pre-tokenizer in files. Files from before the key existed, and "default", are GPT-2's.
constexpr std::pair<absl::string_view, PreTokenizerKind> kPreTokenizers[] = {
    {"default", PreTokenizerKind::kGpt2},     {"gpt-2", PreTokenizerKind::kGpt2},
    {"gpt2", PreTokenizerKind::kGpt2},        {"falcon", PreTokenizerKind::kFalcon},
    {"llama-bpe", PreTokenizerKind::kLlama3}, {"llama3", PreTokenizerKind::kLlama3},
    {"llama-v3", PreTokenizerKind::kLlama3},  {"qwen2", PreTokenizerKind::kQwen2},
};

// Ends of a turn in models whose file does not name theirs.
constexpr absl::string_view kEndOfTurnTexts[] = {"<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>"};

absl::Status Invalid(absl::string_view key, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(key, ": ", what));
}

// NotFound becomes InvalidArgument: the file has to have the key.
template <typename T>
absl::StatusOr<T> Required(absl::string_view key, absl::StatusOr<T> value) {
  if (absl::IsNotFound(value.status())) return Invalid(key, "missing");
  return value;
}

absl::StatusOr<bool> BoolOr(const gguf::File& file, absl::string_view key, bool value_if_absent) {
  if (!file.Has(key)) return value_if_absent;
  return file.GetBool(key);
}

absl::StatusOr<std::optional<uint32_t>> OptionalId(const gguf::File& file, absl::string_view key) {
  if (!file.Has(key)) return std::optional<uint32_t>();
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t id, file.GetInteger(key));
  if (id < 0 || id > std::numeric_limits<uint32_t>::max()) {
    return Invalid(key, absl::StrCat("no token has the id ", id));
  }
  return std::optional<uint32_t>(static_cast<uint32_t>(id));
}

absl::StatusOr<TokenizerModel> ReadModel(const gguf::File& file) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string name, Required(kModel, file.GetString(kModel)));
  if (name == "llama") return TokenizerModel::kSentencePiece;
  if (name == "gpt2") return TokenizerModel::kByteLevelBpe;
  return absl::UnimplementedError(absl::StrCat(kModel, ": \"", name, "\" is not among llama, gpt2"));
}

absl::StatusOr<PreTokenizerKind> ReadPreTokenizer(const gguf::File& file) {
  if (!file.Has(kPre)) {
    // Falcon's files, PowerInfer's among them, are mostly older than the key.
    const absl::StatusOr<std::string> architecture = file.GetString("general.architecture");
    const bool falcon = architecture.ok() && *architecture == "falcon";
    return falcon ? PreTokenizerKind::kFalcon : PreTokenizerKind::kGpt2;
  }
  ISOTHERM_ASSIGN_OR_RETURN(const std::string name, file.GetString(kPre));
  for (const auto& [known, kind] : kPreTokenizers) {
    if (name == known) return kind;
  }
  const std::string supported = absl::StrJoin(
      kPreTokenizers, ", ", [](std::string* out, const auto& entry) { absl::StrAppend(out, entry.first); });
  return absl::UnimplementedError(absl::StrCat(kPre, ": \"", name, "\" is not among ", supported));
}

absl::Status ReadTokens(const gguf::File& file, Vocabulary* vocabulary) {
  ISOTHERM_ASSIGN_OR_RETURN(std::vector<std::string> texts, Required(kTokens, file.GetStringArray(kTokens)));
  std::vector<Token>& tokens = vocabulary->tokens;
  tokens.resize(texts.size());
  for (uint64_t id = 0; id < texts.size(); ++id) tokens[id].text = std::move(texts[id]);

  // SentencePiece cannot work without these two, byte-level BPE can.
  const bool required = vocabulary->model == TokenizerModel::kSentencePiece;
  const auto wrong_length = [&tokens](absl::string_view key, uint64_t length) {
    return Invalid(key, absl::StrCat("has ", length, " entries for ", tokens.size(), " tokens"));
  };
  if (required || file.Has(kScores)) {
    ISOTHERM_ASSIGN_OR_RETURN(const std::vector<float> scores,
                              Required(kScores, file.GetFloatArray(kScores)));
    if (scores.size() != tokens.size()) return wrong_length(kScores, scores.size());
    for (uint64_t id = 0; id < scores.size(); ++id) tokens[id].score = scores[id];
  }
  if (required || file.Has(kTokenTypes)) {
    ISOTHERM_ASSIGN_OR_RETURN(const std::vector<int64_t> types,
                              Required(kTokenTypes, file.GetIntegerArray(kTokenTypes)));
    if (types.size() != tokens.size()) return wrong_length(kTokenTypes, types.size());
    for (uint64_t id = 0; id < types.size(); ++id) {
      if (types[id] < int64_t{static_cast<uint8_t>(TokenType::kNormal)} ||
          types[id] > int64_t{static_cast<uint8_t>(TokenType::kByte)}) {
        return Invalid(kTokenTypes, absl::StrCat("token ", id, " has the unknown type ", types[id]));
      }
      tokens[id].type = static_cast<TokenType>(types[id]);
    }
  }
  return absl::OkStatus();
}

absl::Status ReadMerges(const gguf::File& file, Vocabulary* vocabulary) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<std::string> lines,
                            Required(kMerges, file.GetStringArray(kMerges)));
  absl::flat_hash_map<absl::string_view, uint32_t> ids;
  ids.reserve(vocabulary->tokens.size());
  for (uint32_t id = 0; id < vocabulary->tokens.size(); ++id)
    ids.try_emplace(vocabulary->tokens[id].text, id);

  vocabulary->merges.reserve(lines.size());
  for (uint64_t rank = 0; rank < lines.size(); ++rank) {
    const absl::string_view line = lines[rank];
    const uint64_t space = line.find(' ');
    const absl::string_view left = line.substr(0, space);
    const absl::string_view right = space < line.size() ? line.substr(space + 1) : "";
    const auto left_id = ids.find(left);
    const auto right_id = ids.find(right);
    const auto result_id = ids.find(absl::StrCat(left, right));
    if (left.empty() || right.empty() || left_id == ids.end() || right_id == ids.end() ||
        result_id == ids.end()) {
      return Invalid(kMerges, absl::StrCat("entry ", rank,
                                           " is not two tokens, separated by a space, that make a third"));
    }
    vocabulary->merges.push_back({left_id->second, right_id->second, result_id->second});
  }
  return absl::OkStatus();
}

absl::Status ReadSpecialTokens(const gguf::File& file, Vocabulary* vocabulary) {
  ISOTHERM_ASSIGN_OR_RETURN(vocabulary->bos, OptionalId(file, kBos));
  ISOTHERM_ASSIGN_OR_RETURN(vocabulary->eos, OptionalId(file, kEos));
  ISOTHERM_ASSIGN_OR_RETURN(vocabulary->eot, OptionalId(file, kEot));
  ISOTHERM_ASSIGN_OR_RETURN(vocabulary->unknown, OptionalId(file, kUnknown));
  ISOTHERM_ASSIGN_OR_RETURN(vocabulary->padding, OptionalId(file, kPadding));
  for (const absl::string_view text : kEndOfTurnTexts) {
    for (uint32_t id = 0; id < vocabulary->tokens.size() && !vocabulary->eot.has_value(); ++id) {
      const Token& token = vocabulary->tokens[id];
      if (token.type == TokenType::kControl && token.text == text) vocabulary->eot = id;
    }
  }
  // What Hugging Face's tokenizers of these families do where the file does not say.
  const bool sentencepiece = vocabulary->model == TokenizerModel::kSentencePiece;
  const bool llama = sentencepiece || vocabulary->pre_tokenizer == PreTokenizerKind::kLlama3;
  ISOTHERM_ASSIGN_OR_RETURN(vocabulary->add_bos, BoolOr(file, kAddBos, llama && vocabulary->bos.has_value()));
  ISOTHERM_ASSIGN_OR_RETURN(vocabulary->add_eos, BoolOr(file, kAddEos, false));
  ISOTHERM_ASSIGN_OR_RETURN(const bool space_prefix, BoolOr(file, kAddSpacePrefix, true));
  vocabulary->add_space_prefix = sentencepiece && space_prefix;
  return absl::OkStatus();
}

}  // namespace

std::optional<uint8_t> ByteOfToken(absl::string_view text) {
  constexpr uint64_t kLength = 6;  // <0x0A>
  if (text.size() != kLength || !absl::ConsumePrefix(&text, "<0x") || !absl::ConsumeSuffix(&text, ">")) {
    return std::nullopt;
  }
  if (!absl::ascii_isxdigit(text[0]) || !absl::ascii_isxdigit(text[1])) return std::nullopt;
  return static_cast<uint8_t>(absl::HexStringToBytes(text)[0]);
}

absl::StatusOr<Vocabulary> Vocabulary::FromFile(const gguf::File& file) {
  Vocabulary vocabulary;
  ISOTHERM_ASSIGN_OR_RETURN(vocabulary.model, ReadModel(file));
  const bool byte_level = vocabulary.model == TokenizerModel::kByteLevelBpe;
  if (byte_level) {
    ISOTHERM_ASSIGN_OR_RETURN(vocabulary.pre_tokenizer, ReadPreTokenizer(file));
  }
  ISOTHERM_RETURN_IF_ERROR(ReadTokens(file, &vocabulary));
  if (byte_level) ISOTHERM_RETURN_IF_ERROR(ReadMerges(file, &vocabulary));
  ISOTHERM_RETURN_IF_ERROR(ReadSpecialTokens(file, &vocabulary));
  ISOTHERM_RETURN_IF_ERROR(vocabulary.Validate());
  return vocabulary;
}

absl::Status Vocabulary::Validate() const {
  if (tokens.empty()) return Invalid(kTokens, "empty");
  // Ids are signed in the SentencePiece library.
  if (tokens.size() > static_cast<uint64_t>(std::numeric_limits<int32_t>::max()))
    return Invalid(kTokens, "too many");
  for (uint64_t id = 0; id < tokens.size(); ++id) {
    if (std::isnan(tokens[id].score)) return Invalid(kScores, absl::StrCat("token ", id, " has no number"));
    if (tokens[id].type == TokenType::kByte && !ByteOfToken(tokens[id].text).has_value()) {
      return Invalid(kTokens, absl::StrCat("token ", id, " is of the type byte, but is not like <0x0A>"));
    }
  }
  const std::pair<const char*, std::optional<uint32_t>> ids[] = {
      {kBos, bos}, {kEos, eos}, {kEot, eot}, {kUnknown, unknown}, {kPadding, padding}};
  for (const auto& [key, id] : ids) {
    if (id.has_value() && *id >= tokens.size()) {
      return Invalid(key, absl::StrCat("no token has the id ", *id, "; there are ", tokens.size()));
    }
  }
  for (const Merge& merge : merges) {
    if (std::max({merge.left, merge.right, merge.result}) >= tokens.size()) {
      return Invalid(kMerges, "an entry names a token that does not exist");
    }
  }
  if (add_bos && !bos.has_value()) return Invalid(kAddBos, absl::StrCat("true, but ", kBos, " is missing"));
  if (add_eos && !eos.has_value()) return Invalid(kAddEos, absl::StrCat("true, but ", kEos, " is missing"));
  return absl::OkStatus();
}

}  // namespace isotherm::text
