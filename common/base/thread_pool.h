#ifndef ISOTHERM_COMMON_BASE_THREAD_POOL_H_
#define ISOTHERM_COMMON_BASE_THREAD_POOL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

namespace isotherm::base {

// A fixed team of threads for fork-join work of microseconds. The calling thread is member 0 of the team.
//
// Thread-compatible: one caller at a time. Run() returns when every member has returned from the function; it
// never allocates. Between calls the members spin for `spin_us` and then park on a futex.
class ThreadPool {
 public:
  // A spin time where other processes want cores, too: 50 us on machines with more than four, else 0.
  static int SharedSpinMicroseconds();

  struct Options {
    // Members including the caller; at least 1.
    int threads = 1;
    // How long a member spins for the next Run before it parks. 0 on machines with few cores.
    int spin_us = 0;
    // Pin member i to the i-th CPU of the process's affinity mask.
    bool pin = false;
  };

  // Throws std::system_error where the system refuses a thread, with those before it ended.
  explicit ThreadPool(const Options& options);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Changes Options::spin_us from the next wait on.
  void SetSpin(int spin_us);

  // Calls function(member) on every member, the caller included, and waits for all.
  template <typename Function>
  void Run(const Function& function) {
    RunErased([](const void* context, int member) { (*static_cast<const Function*>(context))(member); },
              &function);
  }

  // Calls function(begin, end, member) over disjoint ranges that cover [0, count), each at most `grain` long
  // and starting at a multiple of it, handed out to members in ascending order as they become free.
  template <typename Function>
  void ParallelFor(int64_t count, int64_t grain, const Function& function) {
    if (count <= 0) return;
    if (threads() == 1 || count <= grain) {
      for (int64_t begin = 0; begin < count; begin += grain) {
        function(begin, begin + grain < count ? begin + grain : count, 0);
      }
      return;
    }
    ResetTicket();
    Run([&](int member) {
      for (int64_t begin; (begin = NextTicket() * grain) < count;) {
        function(begin, begin + grain < count ? begin + grain : count, member);
      }
    });
  }

 private:
  void RunErased(void (*call)(const void*, int), const void* context);
  void ResetTicket();
  int64_t NextTicket();

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace isotherm::base

#endif  // ISOTHERM_COMMON_BASE_THREAD_POOL_H_
