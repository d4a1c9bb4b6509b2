#ifndef ISOTHERM_COMMON_BASE_ROUND_UP_H_
#define ISOTHERM_COMMON_BASE_ROUND_UP_H_

#include <cstdint>

namespace isotherm::base {

// The smallest multiple that is not less than `value`; neither is negative, and the sum fits.
constexpr int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace isotherm::base

#endif  // ISOTHERM_COMMON_BASE_ROUND_UP_H_
