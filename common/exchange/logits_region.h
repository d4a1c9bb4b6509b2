#ifndef ISOTHERM_COMMON_EXCHANGE_LOGITS_REGION_H_
#define ISOTHERM_COMMON_EXCHANGE_LOGITS_REGION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/exchange/region_file.h"
#include "isotherm/worker/v1/model_runner.pb.h"

namespace isotherm::exchange {

// Memory that a gateway and a GPU worker on one host share, where the logits of steps take the place of those
// in messages. The gateway makes one for each step stream and says which rows a step may write; a row changes
// hands with the messages around it. Thread-compatible.
class LogitsRegion {
 public:
  // On the gateway: a new file in `directory`. InvalidArgument for no rows or more than a worker accepts,
  // ResourceExhausted where there is no room.
  static absl::StatusOr<std::unique_ptr<LogitsRegion>> Create(const std::string& directory, int64_t rows,
                                                              int64_t row_bytes);
  // On the worker: maps what a gateway offers. FailedPrecondition where that is on another host, of another
  // size than announced, or too large.
  static absl::StatusOr<std::unique_ptr<LogitsRegion>> Attach(const std::string& directory,
                                                              const worker::v1::LogitsRegion& offer);
  ~LogitsRegion();
  LogitsRegion(const LogitsRegion&) = delete;
  LogitsRegion& operator=(const LogitsRegion&) = delete;

  // Valid until RemoveName, after which nobody can map the region.
  const worker::v1::LogitsRegion& offer() const { return offer_; }
  void RemoveName() { file_.RemoveName(); }

  // On the worker: moves the logits of a step into its rows, and returns how many. Those that do not fit
  // there stay in the message.
  int64_t Put(const worker::v1::StepRequest& request, worker::v1::StepSuccess& success);
  // On the gateway: copies them back into the outputs, which the worker can change no more.
  // FailedPrecondition for rows that the step was not given. As many outputs as slices.
  absl::Status Take(const worker::v1::StepRequest& request, worker::v1::StepSuccess& success) const;

 private:
  LogitsRegion(worker::v1::LogitsRegion offer, RegionFile file, std::byte* base)
      : offer_(std::move(offer)), file_(std::move(file)), base_(base) {}

  // Null outside of the region.
  char* Row(int64_t row) const;

  const worker::v1::LogitsRegion offer_;
  RegionFile file_;  // the gateway's alone
  std::byte* const base_;
};

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_LOGITS_REGION_H_
