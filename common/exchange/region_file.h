#ifndef ISOTHERM_COMMON_EXCHANGE_REGION_FILE_H_
#define ISOTHERM_COMMON_EXCHANGE_REGION_FILE_H_

#include <string>

#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

// The files that regions live in while they have a name. Whoever creates one holds a lock on it (flock) for
// as long as the name is needed; the kernel drops the lock when the process dies, however it dies. A name
// without a lock is therefore what a killed process left behind.
namespace isotherm::exchange {

// Whether a name, which comes from the peer, is one of ours and leads nowhere else.
bool IsRegionName(const std::string& name);

struct RegionFile {
  std::string name;   // nobody can guess it
  base::UniqueFd fd;  // holds the lock
};
// A new empty file in `directory`, for this user alone.
absl::StatusOr<RegionFile> CreateRegionFile(const std::string& directory);

// Removes what killed processes of this user left in `directory`.
void RemoveAbandonedRegionFiles(const std::string& directory);

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_REGION_FILE_H_
