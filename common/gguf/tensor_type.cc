#include "common/gguf/tensor_type.h"

#include <algorithm>
#include <iterator>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/checked.h"
#include "common/gguf/format.h"

namespace isotherm::gguf {
namespace {

struct TypeEntry {
  TensorType type;
  const char* name;
  BlockShape shape;
};

// Block sizes as ggml defines them (ggml-common.h).
constexpr TypeEntry kTypes[] = {
    {TensorType::kF32, "F32", {1, 4}},
    {TensorType::kF16, "F16", {1, 2}},
    {TensorType::kBF16, "BF16", {1, 2}},
    {TensorType::kF64, "F64", {1, 8}},
    {TensorType::kI8, "I8", {1, 1}},
    {TensorType::kI16, "I16", {1, 2}},
    {TensorType::kI32, "I32", {1, 4}},
    {TensorType::kI64, "I64", {1, 8}},
    {TensorType::kQ4_0, "Q4_0", {32, 18}},
    {TensorType::kQ4_1, "Q4_1", {32, 20}},
    {TensorType::kQ5_0, "Q5_0", {32, 22}},
    {TensorType::kQ5_1, "Q5_1", {32, 24}},
    {TensorType::kQ8_0, "Q8_0", {32, 34}},
    {TensorType::kQ2_K, "Q2_K", {256, 84}},
    {TensorType::kQ3_K, "Q3_K", {256, 110}},
    {TensorType::kQ4_K, "Q4_K", {256, 144}},
    {TensorType::kQ5_K, "Q5_K", {256, 176}},
    {TensorType::kQ6_K, "Q6_K", {256, 210}},
    {TensorType::kIQ2_XXS, "IQ2_XXS", {256, 66}},
    {TensorType::kIQ2_XS, "IQ2_XS", {256, 74}},
    {TensorType::kIQ2_S, "IQ2_S", {256, 82}},
    {TensorType::kIQ3_XXS, "IQ3_XXS", {256, 98}},
    {TensorType::kIQ3_S, "IQ3_S", {256, 110}},
    {TensorType::kIQ1_S, "IQ1_S", {256, 50}},
    {TensorType::kIQ1_M, "IQ1_M", {256, 56}},
    {TensorType::kIQ4_NL, "IQ4_NL", {32, 18}},
    {TensorType::kIQ4_XS, "IQ4_XS", {256, 136}},
};

struct RenumberedType {
  TensorType type;
  uint32_t powerinfer_number;
};

constexpr RenumberedType kRenumbered[] = {
    {TensorType::kI8, 16}, {TensorType::kI16, 17}, {TensorType::kI32, 18}};

const TypeEntry* FindType(TensorType type) {
  const auto* found = std::find_if(std::begin(kTypes), std::end(kTypes),
                                   [type](const TypeEntry& entry) { return entry.type == type; });
  return found == std::end(kTypes) ? nullptr : found;
}

}  // namespace

std::string TensorTypeName(TensorType type) {
  const TypeEntry* entry = FindType(type);
  return entry != nullptr ? entry->name : absl::StrCat("type ", static_cast<uint32_t>(type));
}

BlockShape GetBlockShape(TensorType type) {
  const TypeEntry* entry = FindType(type);
  return entry != nullptr ? entry->shape : BlockShape{0, 0};
}

TensorType TypeOfNumber(uint32_t number, bool powerinfer) {
  for (const RenumberedType& entry : kRenumbered) {
    if (powerinfer && number == entry.powerinfer_number) return entry.type;
  }
  return static_cast<TensorType>(number);
}

uint32_t TypeNumber(TensorType type, bool powerinfer) {
  for (const RenumberedType& entry : kRenumbered) {
    if (powerinfer && type == entry.type) return entry.powerinfer_number;
  }
  return static_cast<uint32_t>(type);
}

absl::StatusOr<uint64_t> TensorBytes(TensorType type, absl::Span<const int64_t> dims) {
  if (dims.empty() || dims.size() > kMostDimensions) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", dims.size(), " dimensions where 1 to ", kMostDimensions, " are allowed"));
  }
  std::optional<int64_t> weights = 1;
  for (const int64_t dimension : dims) {
    if (dimension < 1) return absl::InvalidArgumentError(absl::StrCat("has a dimension of ", dimension));
    weights = base::CheckedMul(*weights, dimension);
    if (!weights) return absl::InvalidArgumentError("has more weights than 64 bits can count");
  }
  const BlockShape block = GetBlockShape(type);
  if (block.weights == 0) return 0;
  if (dims[0] % block.weights != 0) {
    return absl::InvalidArgumentError(absl::StrCat("has rows of ", dims[0], " weights, which blocks of ",
                                                   block.weights, " (", TensorTypeName(type),
                                                   ") do not divide"));
  }
  const auto bytes = base::CheckedMul(*weights / block.weights, block.bytes);
  if (!bytes) return absl::InvalidArgumentError("has more bytes than 64 bits can count");
  return static_cast<uint64_t>(*bytes);
}

}  // namespace isotherm::gguf
