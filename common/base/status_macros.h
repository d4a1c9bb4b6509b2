#ifndef ISOTHERM_COMMON_BASE_STATUS_MACROS_H_
#define ISOTHERM_COMMON_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define ISOTHERM_RETURN_IF_ERROR(expression)                                                          \
  do {                                                                                                \
    if (::absl::Status isotherm_status = (expression); !isotherm_status.ok()) return isotherm_status; \
  } while (false)

#define ISOTHERM_STATUS_CONCAT_INNER(a, b) a##b
#define ISOTHERM_STATUS_CONCAT(a, b) ISOTHERM_STATUS_CONCAT_INNER(a, b)
#define ISOTHERM_ASSIGN_OR_RETURN_IMPL(temporary, declaration, expression) \
  auto temporary = (expression);                                           \
  if (!temporary.ok()) return std::move(temporary).status();               \
  declaration = std::move(temporary).value()

// ISOTHERM_ASSIGN_OR_RETURN(auto value, ReturnsStatusOr());
#define ISOTHERM_ASSIGN_OR_RETURN(declaration, expression)                                           \
  ISOTHERM_ASSIGN_OR_RETURN_IMPL(ISOTHERM_STATUS_CONCAT(isotherm_status_or_, __LINE__), declaration, \
                                 expression)

#endif  // ISOTHERM_COMMON_BASE_STATUS_MACROS_H_
