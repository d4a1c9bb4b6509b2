#include "cpu_worker/service/placement_request.h"

#include <bit>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/neuron/mask.h"
#include "common/rpc/status.h"

namespace isotherm::cpu_worker {
namespace {

static_assert(std::endian::native == std::endian::little, "masks travel as little-endian words");

absl::StatusOr<std::vector<uint64_t>> ParseMask(const std::string& bytes, const std::string& field,
                                                int64_t ffn) {
  std::vector<uint64_t> mask(neuron::MaskWords(ffn));
  if (bytes.size() != mask.size() * sizeof(uint64_t)) {
    return rpc::InvalidField(field, absl::StrFormat("%d bytes, expected %d for %d neurons", bytes.size(),
                                                    mask.size() * sizeof(uint64_t), ffn));
  }
  std::memcpy(mask.data(), bytes.data(), bytes.size());
  if (ffn % 64 != 0 && mask.back() >> (ffn % 64) != 0) {
    return rpc::InvalidField(field, absl::StrFormat("bits are set past the last of %d neurons", ffn));
  }
  return mask;
}

}  // namespace

absl::StatusOr<neuron::Placement> ParsePlacement(const worker::v1::ApplyPlacementRequest& request,
                                                 int64_t layers, int64_t ffn) {
  if (request.layers_size() != layers) {
    return rpc::InvalidField("layers",
                             absl::StrFormat("%d layers, the model has %d", request.layers_size(), layers));
  }
  neuron::Placement placement;
  placement.epoch = request.epoch();
  placement.ffn = ffn;
  for (int i = 0; i < request.layers_size(); ++i) {
    ISOTHERM_ASSIGN_OR_RETURN(
        std::vector<uint64_t> mask,
        ParseMask(request.layers(i).hot_mask(), absl::StrCat("layers[", i, "].hot_mask"), ffn));
    placement.hot.push_back(std::move(mask));
  }
  const std::string digest = placement.Digest();
  if (request.digest() != digest) {
    return rpc::InvalidField("digest",
                             absl::StrFormat("\"%s\", but the masks give \"%s\"", request.digest(), digest));
  }
  return placement;
}

}  // namespace isotherm::cpu_worker
