#include "common/base/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/cpu_relax.h"
#include "common/base/host.h"

namespace isotherm::base {
namespace {

// Two cache lines: the adjacent-line prefetcher of x86 moves them in pairs.
constexpr size_t kLine = 128;

// The caller spins at least this long for the last members: about what a futex sleep and wake-up cost
// together.
constexpr int kStragglerSpinUs = 5;

// Pauses between two looks at the clock, about a microsecond.
constexpr int kPausesPerClockRead = 32;

void FutexWait(std::atomic<uint32_t>& word, uint32_t expected) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void FutexWake(std::atomic<uint32_t>& word, int count) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

// Spins until done() or until the time is over; says which.
template <typename Done>
bool SpinFor(int microseconds, const Done& done) {
  if (done()) return true;
  if (microseconds <= 0) return false;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(microseconds);
  do {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      CpuRelax();
      if (done()) return true;
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

std::vector<int> AllowedCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  // Of the process: a caller that an earlier pool pinned would report its own CPU only.
  if (sched_getaffinity(getpid(), sizeof(set), &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

void PinThisThread(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  // Failure (the mask shrank meanwhile) costs speed, never correctness.
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

}  // namespace

// A Run is published by advancing `generation`, and is over when `pending` reaches 0.
//
// No wake-up is lost: a member adds itself to `parked` before the kernel compares `generation`, and the
// caller advances `generation` before it reads `parked`, all sequentially consistent, so one of the two sees
// the other. The same pair with the roles exchanged is `caller_parked` and `pending`.
struct ThreadPool::State {
  std::atomic<int> spin_us;
  std::vector<int> cpus;  // Empty unless members are pinned.
  std::vector<std::thread> members;
  std::thread::id pinned_caller;

  // Written by the caller before it advances `generation`.
  void (*call)(const void*, int) = nullptr;
  const void* context = nullptr;
  bool stop = false;

  alignas(kLine) std::atomic<uint32_t> generation{0};
  std::atomic<uint32_t> parked{0};
  alignas(kLine) std::atomic<uint32_t> pending{0};
  std::atomic<bool> caller_parked{false};
  alignas(kLine) std::atomic<int64_t> ticket{0};

  // Ends and joins the members.
  ~State();
  void Start(int threads);
  void MemberLoop(int member);
  void AwaitGeneration(uint32_t last);
  void AwaitMembers();
  void Publish();
  void PinCaller();
};

void ThreadPool::State::Start(int threads) {
  for (int member = 1; member < threads; ++member) {
    try {
      members.emplace_back(&State::MemberLoop, this, member);
    } catch (const std::system_error& error) {
      throw std::system_error(error.code(),
                              absl::StrCat("cannot start thread ", member + 1, " of ", threads));
    }
  }
}

ThreadPool::State::~State() {
  stop = true;
  Publish();
  for (std::thread& member : members) member.join();
}

void ThreadPool::State::AwaitGeneration(uint32_t last) {
  const auto advanced = [&] { return generation.load(std::memory_order_acquire) != last; };
  if (SpinFor(spin_us.load(std::memory_order_relaxed), advanced)) return;
  parked.fetch_add(1);
  while (!advanced()) FutexWait(generation, last);
  parked.fetch_sub(1);
}

void ThreadPool::State::MemberLoop(int member) {
  if (!cpus.empty()) PinThisThread(cpus[member % cpus.size()]);
  for (uint32_t last = 0;; ++last) {
    AwaitGeneration(last);
    if (stop) return;
    call(context, member);
    if (pending.fetch_sub(1) == 1 && caller_parked.load()) FutexWake(pending, 1);
  }
}

void ThreadPool::State::Publish() {
  generation.fetch_add(1);
  if (parked.load() > 0) FutexWake(generation, INT_MAX);
}

void ThreadPool::State::AwaitMembers() {
  const auto finished = [&] { return pending.load(std::memory_order_acquire) == 0; };
  if (SpinFor(std::max(spin_us.load(std::memory_order_relaxed), kStragglerSpinUs), finished)) return;
  caller_parked.store(true);
  for (uint32_t left; (left = pending.load()) != 0;) FutexWait(pending, left);
  caller_parked.store(false);
}

void ThreadPool::State::PinCaller() {
  if (cpus.empty() || pinned_caller == std::this_thread::get_id()) return;
  PinThisThread(cpus[0]);
  pinned_caller = std::this_thread::get_id();
}

ThreadPool::ThreadPool(const Options& options) : state_(std::make_unique<State>()) {
  state_->spin_us = options.spin_us;
  if (options.pin) state_->cpus = AllowedCpus();
  state_->Start(options.threads);
}

ThreadPool::~ThreadPool() = default;

int ThreadPool::SharedSpinMicroseconds() {
  constexpr int kFewCores = 4;
  return PhysicalCores() > kFewCores ? 50 : 0;
}

void ThreadPool::SetSpin(int spin_us) { state_->spin_us.store(spin_us, std::memory_order_relaxed); }

int ThreadPool::threads() const { return static_cast<int>(state_->members.size()) + 1; }

void ThreadPool::RunErased(void (*call)(const void*, int), const void* context) {
  State& state = *state_;
  state.PinCaller();
  if (!state.members.empty()) {
    state.call = call;
    state.context = context;
    state.pending.store(static_cast<uint32_t>(state.members.size()), std::memory_order_relaxed);
    state.Publish();
  }
  call(context, 0);
  if (!state.members.empty()) state.AwaitMembers();
}

// The ticket needs no order of its own: Run publishes the reset, and its end orders the last draw before the
// next reset.
void ThreadPool::ResetTicket() { state_->ticket.store(0, std::memory_order_relaxed); }

int64_t ThreadPool::NextTicket() { return state_->ticket.fetch_add(1, std::memory_order_relaxed); }

}  // namespace isotherm::base
