#ifndef ISOTHERM_COMMON_BASE_GUARDED_H_
#define ISOTHERM_COMMON_BASE_GUARDED_H_

#include <exception>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace isotherm::base {

// What body() returns, a Status or StatusOr. An exception of its, which would end the process on a thread of
// our own, becomes an error that says what was going on: `doing`, "loading the model" for one.
// ResourceExhausted where memory ran out, else Internal.
template <typename Body>
auto Guarded(const char* doing, const Body& body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(doing, ": out of memory"));
  } catch (const std::exception& exception) {
    return absl::InternalError(absl::StrCat(doing, ": ", exception.what()));
  }
}

}  // namespace isotherm::base

#endif  // ISOTHERM_COMMON_BASE_GUARDED_H_
