#include "hwy/targets.h"

#include "common/kernels/row_kernels.h"
#include "hwy/highway.h"

namespace isotherm::kernels {
namespace {

int64_t Supported() { return hwy::SupportedTargets() & HWY_TARGETS; }

}  // namespace

const char* UnsupportedCpuReason() {
  if (Supported() != 0) return nullptr;
  return "this CPU lacks AVX2, FMA or F16C, the least instruction set the kernels are built for";
}

std::string ActiveTarget() {
  const int64_t supported = Supported();
  return hwy::TargetName(supported & -supported);
}

std::vector<std::string> SupportedTargets() {
  std::vector<std::string> names;
  for (int64_t left = Supported(); left != 0; left &= left - 1)
    names.push_back(hwy::TargetName(left & -left));
  return names;
}

void ForceTargetForTest(const std::string& target) {
  hwy::SetSupportedTargetsForTest(0);
  for (int64_t left = Supported(); left != 0; left &= left - 1) {
    const int64_t one = left & -left;
    if (target == hwy::TargetName(one)) hwy::SetSupportedTargetsForTest(one);
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace isotherm::kernels
