#ifndef ISOTHERM_COMMON_EXCHANGE_REGION_H_
#define ISOTHERM_COMMON_EXCHANGE_REGION_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/exchange/geometry.h"
#include "common/exchange/region_file.h"
#include "common/exchange/region_layout.h"

namespace isotherm::exchange {

// A shared-memory region mapped into this process. The geometry, the generation and all offsets are private
// copies: what the peer writes into the header later changes nothing here. Fail and failed are thread-safe;
// slots follow the protocol of region_layout.h.
class Region {
 public:
  // Pointers into one slot.
  struct Slot {
    Descriptor* request;
    float* x;
    uint64_t* masks;
    float* gate_values;  // null where the geometry has none
    Descriptor* answer;
    float* y;
    Expectation* expected;
    uint64_t* expected_mask;
  };

  // A new file in `directory` with a name nobody can guess, readable and writable by this user alone, its
  // pages allocated. ResourceExhausted with the numbers when the file system has no room for it. Files that
  // killed processes left there are removed first.
  static absl::StatusOr<std::unique_ptr<Region>> Create(const std::string& directory,
                                                        const Geometry& geometry);

  // Maps the region a server created. FailedPrecondition when it is not of this size, layout version and
  // geometry.
  static absl::StatusOr<std::unique_ptr<Region>> Attach(const std::string& directory, const std::string& name,
                                                        int64_t bytes, const Geometry& geometry);

  // Unmaps; the memory is freed when both sides have. Removes the name if it is still there.
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  // File name inside the directory, until RemoveName; the creator's alone.
  const std::string& name() const { return file_.name; }
  // Nobody can map the region after this.
  void RemoveName() { file_.RemoveName(); }

  int64_t bytes() const { return layout_.region_bytes; }
  uint64_t generation() const { return generation_; }
  const Geometry& geometry() const { return geometry_; }
  RegionHeader* header() const { return reinterpret_cast<RegionHeader*>(base_); }
  Slot slot(uint32_t sequence) const;

  // Latches the failure on this side, shows it to the peer and wakes both.
  void Fail();
  bool failed() const;

 private:
  explicit Region(const Geometry& geometry);
  void WriteHeader();
  absl::Status CheckHeader();

  const Geometry geometry_;
  const RegionLayout layout_;
  uint64_t generation_ = 0;
  std::byte* base_ = nullptr;
  RegionFile file_;  // the creator's alone
  // The peer could clear the shared word.
  std::atomic<bool> failed_{false};
};

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_REGION_H_
