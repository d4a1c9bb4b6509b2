#include "common/base/guarded.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "absl/status/statusor.h"

namespace isotherm::base {
namespace {

TEST(GuardedTest, PassesOnWhatIsReturned) {
  EXPECT_EQ(*Guarded("counting", [] { return absl::StatusOr<int>(7); }), 7);
  EXPECT_EQ(Guarded("counting", [] { return absl::NotFoundError("gone"); }), absl::NotFoundError("gone"));
}

TEST(GuardedTest, MakesAnExceptionAnErrorThatSaysWhatWasGoingOn) {
  const auto fail = []() -> absl::StatusOr<int> { throw std::runtime_error("no thread"); };
  EXPECT_EQ(Guarded("connecting", fail).status(), absl::InternalError("connecting: no thread"));
  const auto exhaust = []() -> absl::Status { throw std::bad_alloc(); };
  EXPECT_EQ(Guarded("loading", exhaust), absl::ResourceExhaustedError("loading: out of memory"));
}

}  // namespace
}  // namespace isotherm::base
