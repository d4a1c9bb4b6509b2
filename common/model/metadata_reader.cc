#include "common/model/metadata_reader.h"

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm::model {

absl::StatusOr<int64_t> MetadataReader::Integer(absl::string_view key, int64_t least, int64_t most) const {
  ISOTHERM_RETURN_IF_ERROR(CheckPresent(key));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t value, file_.GetInteger(FullKey(key)));
  if (value < least || value > most) {
    return absl::InvalidArgumentError(
        Message(key, absl::StrCat("is ", value, " where ", least, " to ", most, " is allowed")));
  }
  return value;
}

absl::StatusOr<int64_t> MetadataReader::IntegerOr(absl::string_view key, int64_t least, int64_t most,
                                                  int64_t fallback) const {
  return Has(key) ? Integer(key, least, most) : fallback;
}

absl::StatusOr<float> MetadataReader::Float(absl::string_view key, double least, double most) const {
  ISOTHERM_RETURN_IF_ERROR(CheckPresent(key));
  ISOTHERM_ASSIGN_OR_RETURN(const double value, file_.GetFloat(FullKey(key)));
  if (!(value >= least && value <= most)) {  // NaN is neither
    return absl::InvalidArgumentError(
        Message(key, absl::StrCat("is ", value, " where ", least, " to ", most, " is allowed")));
  }
  return static_cast<float>(value);
}

absl::StatusOr<float> MetadataReader::FloatOr(absl::string_view key, double least, double most,
                                              double fallback) const {
  return Has(key) ? Float(key, least, most) : static_cast<float>(fallback);
}

absl::StatusOr<std::string> MetadataReader::String(absl::string_view key) const {
  ISOTHERM_RETURN_IF_ERROR(CheckPresent(key));
  return file_.GetString(FullKey(key));
}

absl::StatusOr<std::string> MetadataReader::StringOr(absl::string_view key,
                                                     absl::string_view fallback) const {
  return Has(key) ? String(key) : std::string(fallback);
}

std::string MetadataReader::Message(absl::string_view key, absl::string_view what) const {
  return absl::StrCat(file_.path(), ": metadata key '", FullKey(key), "' ", what);
}

absl::Status MetadataReader::CheckPresent(absl::string_view key) const {
  return Has(key) ? absl::OkStatus() : absl::InvalidArgumentError(Message(key, "is missing"));
}

std::string MetadataReader::FullKey(absl::string_view key) const {
  return absl::StartsWith(key, ".") ? absl::StrCat(architecture_, key) : std::string(key);
}

}  // namespace isotherm::model
