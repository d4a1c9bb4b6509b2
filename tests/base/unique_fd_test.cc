#include "common/base/unique_fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <utility>

namespace isotherm::base {
namespace {

bool IsOpen(int fd) { return fcntl(fd, F_GETFD) != -1; }

TEST(UniqueFdTest, ClosesExactlyOnce) {
  const int raw = open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(raw, 0);
  {
    UniqueFd first(raw);
    UniqueFd second = std::move(first);
    EXPECT_FALSE(first.valid());
    EXPECT_EQ(second.get(), raw);
    EXPECT_TRUE(IsOpen(raw));
  }
  EXPECT_FALSE(IsOpen(raw));
}

TEST(UniqueFdTest, AssignmentClosesWhatWasHeld) {
  UniqueFd held(open("/dev/null", O_RDONLY | O_CLOEXEC));
  const int old = held.get();
  const int released = open("/dev/null", O_RDONLY | O_CLOEXEC);
  held = UniqueFd(released);
  EXPECT_FALSE(IsOpen(old));
  EXPECT_EQ(held.release(), released);
  EXPECT_FALSE(held.valid());
  EXPECT_TRUE(IsOpen(released));
  close(released);
}

}  // namespace
}  // namespace isotherm::base
