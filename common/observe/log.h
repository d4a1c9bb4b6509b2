#ifndef ISOTHERM_COMMON_OBSERVE_LOG_H_
#define ISOTHERM_COMMON_OBSERVE_LOG_H_

#include <cstdint>
#include <string>

#include <spdlog/spdlog.h>

#include "absl/status/status.h"

// Logging is spdlog's default logger on stderr: spdlog::info("loaded {} layers", n).
namespace isotherm::observe {

// Call once from main. `process` is put in every line; level is one of debug, info, warn, error; format text or json (one object a line:
// time, level, process, message).
absl::Status InitLogging(const std::string& process, const std::string& level, const std::string& format);

// Progress of something that takes more than two seconds: a line at most every two seconds with percent, rate and remaining time,
// on a terminal rewritten in place. Thread-safe.
class Progress {
 public:
  Progress(std::string what, int64_t total, std::string unit);  // unit "bytes" is shown as GB and GB/s
  void Advance(int64_t amount);
  void Finish();

 private:
  std::string what_, unit_;
  int64_t total_;
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace isotherm::observe

#endif  // ISOTHERM_COMMON_OBSERVE_LOG_H_
