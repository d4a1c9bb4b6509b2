#ifndef ISOTHERM_COMMON_EXCHANGE_REGION_FILE_H_
#define ISOTHERM_COMMON_EXCHANGE_REGION_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

// The files that regions live in while they have a name. Whoever creates one holds a lock on it (flock) for
// as long as the name is needed; the kernel drops the lock when the process dies, however it dies. A name
// without a lock is therefore what a killed process left behind. Inboxes (file_inbox.h) have such names, too.
namespace isotherm::exchange {

// A name for something in a shared-memory directory that nobody can guess.
std::string MakeRegionName();
// Whether a name, which comes from the peer, is one of ours and leads nowhere else.
bool IsRegionName(const std::string& name);

struct RegionFile {
  std::string directory;
  std::string name;   // nobody can guess it; empty once it is removed
  base::UniqueFd fd;  // holds the lock

  // Nobody can open the file after this.
  void RemoveName();
};
// A new empty file in `directory`, for this user alone.
absl::StatusOr<RegionFile> CreateRegionFile(const std::string& directory);

// Gives a file its pages, so that no touch of the mapping ends in SIGBUS. ResourceExhausted with the numbers
// where `directory` has no room for them; `what` says who needs it.
absl::Status AllocateRegionFile(int fd, int64_t bytes, const std::string& directory, const std::string& what);
// Opens what a peer named. FailedPrecondition unless the name is one of ours and the file has so many bytes.
absl::StatusOr<base::UniqueFd> OpenRegionFile(const std::string& directory, const std::string& name,
                                              int64_t bytes);
// For reading and writing, its pages present.
absl::StatusOr<std::byte*> MapRegionFile(int fd, int64_t bytes);

// Removes what killed processes of this user left in `directory`.
void RemoveAbandonedRegionFiles(const std::string& directory);

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_REGION_FILE_H_
