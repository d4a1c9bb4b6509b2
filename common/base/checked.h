#ifndef ISOTHERM_COMMON_BASE_CHECKED_H_
#define ISOTHERM_COMMON_BASE_CHECKED_H_

#include <concepts>
#include <cstdint>
#include <optional>

// Arithmetic on sizes that a file or a peer claims: nullopt where the result does not fit.
namespace isotherm::base {

template <typename T>
concept Integer64 = std::same_as<T, int64_t> || std::same_as<T, uint64_t>;

template <Integer64 T>
[[nodiscard]] constexpr std::optional<T> CheckedAdd(T a, T b) {
  T sum{};
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

template <Integer64 T>
[[nodiscard]] constexpr std::optional<T> CheckedMul(T a, T b) {
  T product{};
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

}  // namespace isotherm::base

#endif  // ISOTHERM_COMMON_BASE_CHECKED_H_
