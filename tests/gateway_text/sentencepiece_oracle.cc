#include "tests/gateway_text/sentencepiece_oracle.h"

#include <sentencepiece_processor.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace isotherm::text {
namespace {

// Fields of sentencepiece_model.proto in protobuf's wire format; the packages do not ship the generated
// header.
std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>(value | 0x80));
  bytes.push_back(static_cast<char>(value));
  return bytes;
}
std::string VarintField(int field, uint64_t value) { return Varint(field << 3 | 0) + Varint(value); }
std::string BytesField(int field, const std::string& value) {
  return Varint(field << 3 | 2) + Varint(value.size()) + value;
}
std::string FloatField(int field, float value) {
  char bytes[sizeof(value)];
  std::memcpy(bytes, &value, sizeof(value));
  return Varint(field << 3 | 5) + std::string(bytes, sizeof(bytes));
}

std::string ModelProto(const std::vector<SentencePieceOracle::Piece>& pieces, bool byte_fallback,
                       bool add_space_prefix) {
  constexpr int kModelTypeBpe = 2;
  std::string model;
  for (const auto& piece : pieces) {
    model +=
        BytesField(1, BytesField(1, piece.text) + FloatField(2, piece.score) + VarintField(3, piece.type));
  }
  const std::string trainer_spec = VarintField(3, kModelTypeBpe) + VarintField(35, byte_fallback ? 1 : 0);
  const bool remove_extra_whitespaces = false;
  const bool escape_whitespaces = true;
  const std::string normalizer_spec = BytesField(1, "identity") + VarintField(3, add_space_prefix ? 1 : 0) +
                                      VarintField(4, remove_extra_whitespaces) +
                                      VarintField(5, escape_whitespaces);
  return model + BytesField(2, trainer_spec) + BytesField(3, normalizer_spec);
}

void DieUnlessOk(const sentencepiece::util::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

}  // namespace

struct SentencePieceOracle::Impl {
  sentencepiece::SentencePieceProcessor processor;
};

SentencePieceOracle::SentencePieceOracle(const std::vector<Piece>& pieces, bool byte_fallback,
                                         bool add_space_prefix)
    : impl_(std::make_unique<Impl>()) {
  DieUnlessOk(impl_->processor.LoadFromSerializedProto(ModelProto(pieces, byte_fallback, add_space_prefix)));
}

SentencePieceOracle::~SentencePieceOracle() = default;

std::vector<int> SentencePieceOracle::Encode(const std::string& text) const {
  std::vector<int> ids;
  DieUnlessOk(impl_->processor.Encode(text, &ids));
  return ids;
}

}  // namespace isotherm::text
