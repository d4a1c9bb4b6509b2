#ifndef ISOTHERM_GATEWAY_TEXT_BYTE_LEVEL_BPE_H_
#define ISOTHERM_GATEWAY_TEXT_BYTE_LEVEL_BPE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "gateway/text/pre_tokenizer.h"
#include "gateway/text/symbol_merger.h"
#include "gateway/text/text_encoder.h"
#include "gateway/text/vocabulary.h"

namespace isotherm::text {

// Byte-pair encoding over bytes, as of GPT-2: each word starts as its bytes, then neighbours are merged, the
// earliest merge of the list first and of equal ones the leftmost.
class ByteLevelBpe final : public TextEncoder {
 public:
  // `pieces` are the bytes of every token, by id.
  static absl::StatusOr<std::unique_ptr<ByteLevelBpe>> Create(const Vocabulary& vocabulary,
                                                              absl::Span<const std::string> pieces);

  absl::Status Encode(absl::string_view text, std::vector<uint32_t>* ids) const override;

 private:
  ByteLevelBpe() = default;
  static uint64_t Pair(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }

  std::unique_ptr<PreTokenizer> pre_tokenizer_;
  std::array<std::optional<uint32_t>, 256> byte_tokens_;
  absl::flat_hash_map<uint64_t, Join> rules_;
  // Llama 3: a word that is a token is that token, whatever merges would make of it. Empty for the others.
  absl::flat_hash_map<std::string, uint32_t> whole_words_;
};

}  // namespace isotherm::text

#endif  // ISOTHERM_GATEWAY_TEXT_BYTE_LEVEL_BPE_H_
