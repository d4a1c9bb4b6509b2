#ifndef ISOTHERM_COMMON_EXCHANGE_SERVED_SEQUENCES_H_
#define ISOTHERM_COMMON_EXCHANGE_SERVED_SEQUENCES_H_

#include <cstdint>
#include <map>
#include <mutex>

#include "absl/status/status.h"
#include "common/observe/trace.h"
#include "isotherm/worker/v1/neuron.pb.h"

namespace isotherm::exchange {

// Whom the exchanges of one stream are for, as the client notes it. A log line under the trace of the request
// says when a sequence begins and when it is over. Thread-safe.
class ServedSequences {
 public:
  void Take(const worker::v1::SequenceNote& note);
  // The stream has ended, perhaps with an error, which the sequences that were not over have met.
  void End(const absl::Status& status);

 private:
  // std::mutex, because the distribution's Abseil hides its own from the thread sanitizer.
  std::mutex mutex_;
  std::map<uint64_t, observe::Trace> traces_;  // guarded by mutex_
};

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_SERVED_SEQUENCES_H_
