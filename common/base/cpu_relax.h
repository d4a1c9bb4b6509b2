#ifndef ISOTHERM_COMMON_BASE_CPU_RELAX_H_
#define ISOTHERM_COMMON_BASE_CPU_RELAX_H_

namespace isotherm::base {

// Between two looks of a loop that waits for another core.
inline void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace isotherm::base

#endif  // ISOTHERM_COMMON_BASE_CPU_RELAX_H_
