#include "common/exchange/geometry.h"

#include "absl/strings/str_cat.h"

namespace isotherm::exchange {
namespace {

// Far above any model, low enough that the products below stay within int64_t.
constexpr int64_t kMaxLayers = 1 << 16;
constexpr int64_t kMaxWidth = 1 << 22;
constexpr int64_t kMaxRows = 1 << 16;
constexpr int64_t kMaxElements = INT32_MAX;

absl::Status CheckRange(const char* name, int64_t value, int64_t most) {
  if (value >= 1 && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("exchange geometry: ", name, " is ", value, ", must be in [1, ", most, "]"));
}

}  // namespace

absl::Status CheckGeometry(const Geometry& geometry) {
  const int64_t rows = geometry.max_rows;
  struct Range {
    const char* name;
    int64_t value, most;
  };
  // The products come last: their factors are in range by then.
  for (const Range& range :
       {Range{"layers", geometry.layers, kMaxLayers}, Range{"hidden", geometry.hidden, kMaxWidth},
        Range{"ffn", geometry.ffn, kMaxWidth}, Range{"max_rows", rows, kMaxRows}}) {
    if (absl::Status status = CheckRange(range.name, range.value, range.most); !status.ok()) return status;
  }
  if (absl::Status status = CheckRange("max_rows * hidden", rows * geometry.hidden, kMaxElements);
      !status.ok()) {
    return status;
  }
  return CheckRange("max_rows * ffn", rows * geometry.ffn, kMaxElements);
}

}  // namespace isotherm::exchange
