#include "common/base/random_id.h"

#include <sys/random.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"

namespace isotherm::base {

std::string RandomId() {
  std::array<char, 16> bytes;
  // Requests of up to 256 bytes are all or nothing (getrandom(2)).
  while (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    if (errno == EINTR) continue;
    // Names that could be guessed would be worse than no process.
    std::perror("getrandom");
    std::abort();
  }
  return absl::BytesToHexString(absl::string_view(bytes.data(), bytes.size()));
}

}  // namespace isotherm::base
