#if defined(ISOTHERM_COMMON_KERNELS_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_EXP_INL_H_
#undef ISOTHERM_COMMON_KERNELS_EXP_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_EXP_INL_H_
#endif

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

// exp(power). Highway's own turns NaN into 0, which would hide a broken input.
template <class D, class V>
HWY_INLINE V ExpKeepingNaN(D d, V power) {
  return hwy::HWY_NAMESPACE::IfThenElse(hwy::HWY_NAMESPACE::IsNaN(power), power,
                                        hwy::HWY_NAMESPACE::Exp(d, power));
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#endif  // ISOTHERM_COMMON_KERNELS_EXP_INL_H_
