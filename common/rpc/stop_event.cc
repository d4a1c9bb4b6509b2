#include "common/rpc/stop_event.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>

namespace isotherm::rpc {

absl::Status StopEvent::Open() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  signals_.reset(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_.valid()) return absl::ErrnoToStatus(errno, "signalfd");
  raised_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!raised_.valid()) return absl::ErrnoToStatus(errno, "eventfd");
  return absl::OkStatus();
}

void StopEvent::Raise() {
  // Fails only when the counter is full, and then the event is raised already.
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(raised_.get(), &one, sizeof one);
}

bool StopEvent::Wait(absl::Duration at_most) {
  pollfd fds[] = {{signals_.get(), POLLIN, 0}, {raised_.get(), POLLIN, 0}};
  timespec time = absl::ToTimespec(at_most);
  const bool forever = at_most == absl::InfiniteDuration();
  while (ppoll(fds, 2, forever ? nullptr : &time, nullptr) < 0 && errno == EINTR) {
  }
  signalfd_siginfo signal;
  uint64_t count = 0;
  const bool signalled = read(signals_.get(), &signal, sizeof signal) == sizeof signal;
  const bool raised = read(raised_.get(), &count, sizeof count) == sizeof count;
  return signalled || raised;
}

}  // namespace isotherm::rpc
