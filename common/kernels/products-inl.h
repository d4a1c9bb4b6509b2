// The products of each weight type.

#if defined(ISOTHERM_COMMON_KERNELS_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_PRODUCTS_INL_H_
#undef ISOTHERM_COMMON_KERNELS_PRODUCTS_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_PRODUCTS_INL_H_
#endif

#include <type_traits>

#include "common/kernels/float_products-inl.h"
#include "common/kernels/integer_products-inl.h"
#include "hwy/highway.h"

// Without HWY_BEFORE_NAMESPACE: there is no function here that it could apply to.
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

template <WeightType kType>
inline constexpr bool kIntegerProducts = RowDecoder<kType>::kScalesApart;

template <WeightType kType>
using Products = std::conditional_t<kIntegerProducts<kType>, IntegerProducts<kType>, FloatProducts<kType>>;

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels

#endif  // ISOTHERM_COMMON_KERNELS_PRODUCTS_INL_H_
