#ifndef ISOTHERM_GPU_WORKER_SERVICE_SEQUENCE_LOG_H_
#define ISOTHERM_GPU_WORKER_SERVICE_SEQUENCE_LOG_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/exchange/channel.h"
#include "common/observe/trace.h"
#include "isotherm/worker/v1/model_runner.pb.h"

namespace isotherm::gpu_worker {

// Which requests the steps of a gateway are for. A log line under the trace of each says when its sequence
// begins, when it is over and what it took, and why a step failed; the CPU workers learn the same. Sequences
// that come without a trace are left out. Thread-compatible.
class SequenceLog {
 public:
  // A step is about to run: what ends and begins with it.
  void Begin(const worker::v1::StepRequest& request);
  // Notes for the CPU workers what they have not been told. `opening` changes with the channel, whose workers
  // know nothing.
  void Tell(exchange::Channel& channel, int64_t opening);
  // The step has run, or failed.
  void Count(const worker::v1::StepRequest& request, const absl::StatusOr<worker::v1::StepSuccess>& success);
  // The gateway's stream is gone. What it had begun may go on over another one, which brings traces again.
  void EndAll();

 private:
  struct Entry {
    observe::Trace trace;
    bool told = false;
    int64_t rows = 0, steps = 0;
    double seconds = 0, cpu_worker_wait_seconds = 0;
    std::string failure;  // of the last step
  };

  void End(uint64_t id, const char* why);

  std::map<uint64_t, Entry> live_;
  std::vector<uint64_t> over_;  // the CPU workers take them for alive
  bool news_ = false;           // for the CPU workers
  int64_t opening_ = 0;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_SERVICE_SEQUENCE_LOG_H_
