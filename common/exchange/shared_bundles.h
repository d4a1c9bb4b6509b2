#ifndef ISOTHERM_COMMON_EXCHANGE_SHARED_BUNDLES_H_
#define ISOTHERM_COMMON_EXCHANGE_SHARED_BUNDLES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "isotherm/worker/v1/neuron.pb.h"

// The bundles of every neuron, which a CPU worker holds in a sealed memory file, seen by a GPU worker on the
// same host.
namespace isotherm::exchange {

// On the server. The file, which it keeps open, is sealed against shrinking and against writes through
// mappings yet to be made, so that a reader neither faults nor can spoil it.
struct BundleFile {
  int fd = -1;
  int64_t bytes = 0;
  std::vector<int64_t> layer_offsets;  // of each layer's first bundle
};

absl::StatusOr<worker::v1::SharedBundles> OfferBundles(const BundleFile& file);

// On the client: a read-only mapping, which outlives the server.
class SharedBundles {
 public:
  // `file` is what came for the offer. FailedPrecondition unless it is the very file offered (by device and
  // inode), sealed and as long as announced.
  static absl::StatusOr<std::unique_ptr<SharedBundles>> Map(int file, const worker::v1::SharedBundles& offer,
                                                            int64_t layers);
  ~SharedBundles();
  SharedBundles(const SharedBundles&) = delete;
  SharedBundles& operator=(const SharedBundles&) = delete;

  const uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // The first of a layer's bundles; null unless all `layer_bytes` of them lie in the file.
  const uint8_t* Layer(int64_t layer, int64_t layer_bytes) const;

 private:
  SharedBundles(const uint8_t* data, int64_t bytes, std::vector<int64_t> layer_offsets)
      : data_(data), bytes_(bytes), layer_offsets_(std::move(layer_offsets)) {}

  const uint8_t* const data_;
  const int64_t bytes_;
  const std::vector<int64_t> layer_offsets_;
};

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_SHARED_BUNDLES_H_
