#ifndef ISOTHERM_COMMON_BASE_RANDOM_ID_H_
#define ISOTHERM_COMMON_BASE_RANDOM_ID_H_

#include <string>

namespace isotherm::base {

// 128 bits from the kernel's generator as 32 lower-case hexadecimal digits: nobody can guess one, no two are
// alike.
std::string RandomId();

}  // namespace isotherm::base

#endif  // ISOTHERM_COMMON_BASE_RANDOM_ID_H_
