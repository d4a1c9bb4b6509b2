#ifndef ISOTHERM_COMMON_BASE_FILE_H_
#define ISOTHERM_COMMON_BASE_FILE_H_

#include <string>

#include "absl/status/statusor.h"

namespace isotherm::base {

// The whole of a small file; works for /proc and /sys, whose files have no size. Errors name the path.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path);

}  // namespace isotherm::base

#endif  // ISOTHERM_COMMON_BASE_FILE_H_
