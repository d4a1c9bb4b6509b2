#include "common/gguf/parser.h"

#include <bit>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/checked.h"
#include "common/base/status_macros.h"
#include "common/gguf/cursor.h"
#include "common/gguf/format.h"
#include "common/gguf/tensor_type.h"

namespace isotherm::gguf {
namespace {

constexpr uint64_t kLeastAlignment = 8;  // the format asks for a multiple of it
constexpr uint64_t kMostAlignment = 1 << 20;

// The least that an entry takes in the file; what a count claims is checked against the bytes that remain.
constexpr uint64_t kLeastMetadataBytes = 8 + 4 + 1;        // key length, type, value
constexpr uint64_t kLeastTensorBytes = 8 + 4 + 8 + 4 + 8;  // name length, rank, one dimension, type, offset

constexpr char kFetchAgain[] = "; the file is truncated or damaged, fetch it again";

class Parser {
 public:
  Parser(absl::Span<const uint8_t> bytes, const std::string& name)
      : cursor_(bytes), size_(bytes.size()), name_(name) {}

  absl::StatusOr<Contents> Parse() {
    ISOTHERM_RETURN_IF_ERROR(ParseMagic());
    ISOTHERM_RETURN_IF_ERROR(ParseVersion());
    ISOTHERM_RETURN_IF_ERROR(ParseCounts());
    for (uint64_t i = 0; i < metadata_count_; ++i) ISOTHERM_RETURN_IF_ERROR(ParseMetadata(i));
    for (uint64_t i = 0; i < tensor_count_; ++i) ISOTHERM_RETURN_IF_ERROR(ParseTensor(i));
    contents_.header_bytes = cursor_.position();
    ISOTHERM_RETURN_IF_ERROR(PlaceTensors());
    return std::move(contents_);
  }

 private:
  absl::Status ParseMagic() {
    const auto magic = cursor_.ReadBytes(4);
    if (!magic) return PastTheEnd("the magic");
    const absl::string_view text(reinterpret_cast<const char*>(magic->data()), magic->size());
    contents_.is_powerinfer = text == kPowerInferMagic;
    if (text == kMagic || contents_.is_powerinfer) return absl::OkStatus();
    return Invalid(absl::StrCat("begins with \"", Printable(text),
                                "\" where \"GGUF\" or \"PWRI\" is expected; it is no GGUF file"));
  }

  absl::Status ParseVersion() {
    const auto version = cursor_.Read<uint32_t>();
    if (!version) return PastTheEnd("the version");
    contents_.version = *version;
    if (*version == 2 || *version == 3) return absl::OkStatus();
    if (*version != 0 && (*version & 0xFFFF) == 0) {
      return Unimplemented("is a big-endian GGUF file; fetch or convert the little-endian form");
    }
    if (*version == 1)
      return Unimplemented("is GGUF version 1; versions 2 and 3 can be read, convert the model anew");
    return Unimplemented(absl::StrCat("is GGUF version ", *version, "; versions 2 and 3 can be read"));
  }

  absl::Status ParseCounts() {
    const auto tensors = cursor_.Read<uint64_t>();
    const auto metadata = cursor_.Read<uint64_t>();
    if (!tensors || !metadata) return PastTheEnd("the header");
    tensor_count_ = *tensors;
    metadata_count_ = *metadata;
    if (metadata_count_ > cursor_.remaining() / kLeastMetadataBytes) {
      return Invalid(absl::StrCat("claims ", metadata_count_, " metadata keys, more than fit in its ", size_,
                                  " bytes", kFetchAgain));
    }
    if (tensor_count_ > cursor_.remaining() / kLeastTensorBytes) {
      return Invalid(absl::StrCat("claims ", tensor_count_, " tensors, more than fit in its ", size_,
                                  " bytes", kFetchAgain));
    }
    return absl::OkStatus();
  }

  absl::Status ParseMetadata(uint64_t index) {
    where_ = absl::StrCat("metadata key ", index + 1, " of ", metadata_count_);
    const auto key = cursor_.ReadString();
    if (!key) return PastTheEnd("its name");
    if (key->empty() || key->size() > kMostKeyBytes) {
      return Invalid(
          absl::StrCat("its name has ", key->size(), " bytes where 1 to ", kMostKeyBytes, " are allowed"));
    }
    where_ = absl::StrCat("metadata key '", Printable(*key), "' (", index + 1, " of ", metadata_count_, ")");
    auto value = ReadValue(cursor_);
    if (!value.ok()) return Invalid(value.status().message());
    if (!contents_.metadata.emplace(*key, *value).second) return Invalid("appears twice");
    contents_.keys.emplace_back(*key);
    return absl::OkStatus();
  }

  absl::Status ParseTensor(uint64_t index) {
    where_ = absl::StrCat("tensor ", index + 1, " of ", tensor_count_);
    const auto name = cursor_.ReadString();
    if (!name) return PastTheEnd("its name");
    if (name->empty() || name->size() > kMostTensorNameBytes) {
      return Invalid(absl::StrCat("its name has ", name->size(), " bytes where 1 to ", kMostTensorNameBytes,
                                  " are allowed"));
    }
    TensorInfo tensor;
    tensor.name = std::string(*name);
    where_ = DescribeTensor(tensor, index);
    ISOTHERM_RETURN_IF_ERROR(ParseDimensions(tensor));
    const auto type = cursor_.Read<uint32_t>();
    const auto offset = cursor_.Read<uint64_t>();
    if (!type || !offset) return PastTheEnd("its type and offset");
    tensor.type = TypeOfNumber(*type, contents_.is_powerinfer);
    tensor.offset = *offset;
    ISOTHERM_RETURN_IF_ERROR(MeasureTensor(tensor));
    if (!contents_.tensor_index.emplace(tensor.name, index).second) return Invalid("appears twice");
    contents_.tensors.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  absl::Status ParseDimensions(TensorInfo& tensor) {
    const auto rank = cursor_.Read<uint32_t>();
    if (!rank) return PastTheEnd("its number of dimensions");
    if (*rank < 1 || *rank > kMostDimensions) {
      return Invalid(absl::StrCat("has ", *rank, " dimensions where 1 to ", kMostDimensions, " are allowed"));
    }
    tensor.rank = static_cast<int>(*rank);
    tensor.dims.fill(1);
    for (int i = 0; i < tensor.rank; ++i) {
      const auto dimension = cursor_.Read<uint64_t>();
      if (!dimension) return PastTheEnd(absl::StrCat("its dimension ", i + 1));
      if (!std::in_range<int64_t>(*dimension)) {
        return Invalid(absl::StrCat("has a dimension of ", *dimension));
      }
      tensor.dims[i] = static_cast<int64_t>(*dimension);
    }
    return absl::OkStatus();
  }

  // Sets `bytes`, 0 for types whose blocks are not known.
  absl::Status MeasureTensor(TensorInfo& tensor) {
    // PowerInfer's index files list the hot neurons of a layer, and there may be none.
    if (contents_.is_powerinfer && tensor.type == TensorType::kI32 && tensor.rank == 1 &&
        tensor.dims[0] == 0) {
      tensor.bytes = 0;
      return absl::OkStatus();
    }
    const auto bytes = TensorBytes(tensor.type, absl::MakeConstSpan(tensor.dims).first(tensor.rank));
    if (!bytes.ok()) return Invalid(bytes.status().message());
    tensor.bytes = *bytes;
    return absl::OkStatus();
  }

  absl::StatusOr<uint64_t> Alignment() {
    const auto found = contents_.metadata.find(kAlignmentKey);
    if (found == contents_.metadata.end()) return kDefaultAlignment;
    where_ = absl::StrCat("metadata key '", kAlignmentKey, "'");
    const auto value = DecodeInteger(found->second);
    if (!value.ok()) return Invalid(value.status().message());
    const auto alignment = static_cast<uint64_t>(*value);
    if (!std::has_single_bit(alignment) || alignment < kLeastAlignment || alignment > kMostAlignment) {
      return Invalid(absl::StrCat("is ", *value, " where a power of two from ", kLeastAlignment, " to ",
                                  kMostAlignment, " is expected"));
    }
    return alignment;
  }

  // Turns offsets into the data section into offsets into the file.
  absl::Status PlaceTensors() {
    ISOTHERM_ASSIGN_OR_RETURN(const uint64_t alignment, Alignment());
    const uint64_t data_begin = AlignUp(contents_.header_bytes, alignment);
    for (size_t i = 0; i < contents_.tensors.size(); ++i) {
      TensorInfo& tensor = contents_.tensors[i];
      where_ = DescribeTensor(tensor, i);
      if (tensor.offset % alignment != 0) {
        return Invalid(
            absl::StrCat("its offset ", tensor.offset, " is no multiple of the alignment ", alignment));
      }
      const auto begin = base::CheckedAdd(tensor.offset, data_begin);
      const auto end = begin ? base::CheckedAdd(*begin, tensor.bytes) : std::nullopt;
      if (!end) return Invalid(absl::StrCat("its offset is past what 64 bits can count", kFetchAgain));
      if (*end > size_) {
        return Invalid(absl::StrCat("data at ", *begin, "..", *end, " lies past the end of the file (", size_,
                                    " bytes)", kFetchAgain));
      }
      tensor.offset = *begin;
    }
    return absl::OkStatus();
  }

  std::string DescribeTensor(const TensorInfo& tensor, uint64_t index) const {
    return absl::StrCat("tensor '", Printable(tensor.name), "' (", index + 1, " of ", tensor_count_, ")");
  }

  std::string Message(absl::string_view what) const {
    return where_.empty() ? absl::StrCat(name_, ": ", what) : absl::StrCat(name_, ": ", where_, ": ", what);
  }
  absl::Status Invalid(absl::string_view what) const { return absl::InvalidArgumentError(Message(what)); }
  absl::Status Unimplemented(absl::string_view what) const { return absl::UnimplementedError(Message(what)); }
  absl::Status PastTheEnd(absl::string_view what) const {
    return Invalid(absl::StrCat(what, " at byte ", cursor_.position(), " reaches past the end of the file (",
                                size_, " bytes)", kFetchAgain));
  }

  Cursor cursor_;
  const uint64_t size_;
  const std::string& name_;
  uint64_t metadata_count_ = 0;
  uint64_t tensor_count_ = 0;
  std::string where_;  // what messages are about
  Contents contents_;
};

}  // namespace

absl::StatusOr<Contents> ParseContents(absl::Span<const uint8_t> bytes, const std::string& name) {
  return Parser(bytes, name).Parse();
}

}  // namespace isotherm::gguf
