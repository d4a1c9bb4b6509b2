#ifndef ISOTHERM_COMMON_EXCHANGE_FRAME_H_
#define ISOTHERM_COMMON_EXCHANGE_FRAME_H_

#include <cstring>
#include <optional>

#include "common/exchange/region_layout.h"
#include "common/kernels/packed_row.h"
#include "isotherm/worker/v1/neuron.pb.h"

namespace isotherm::exchange {

// The header bytes of a frame are a descriptor as it lies in a slot.
inline void PutDescriptor(const Descriptor& descriptor, worker::v1::ExchangeFrame* frame) {
  frame->set_header(&descriptor, sizeof(descriptor));
}

// nullopt when the bytes are not a descriptor's.
inline std::optional<Descriptor> TakeDescriptor(const worker::v1::ExchangeFrame& frame) {
  Descriptor descriptor;
  if (frame.header().size() != sizeof(descriptor)) return std::nullopt;
  std::memcpy(&descriptor, frame.header().data(), sizeof(descriptor));
  return descriptor;
}

// Activations of a frame in BF16, rounded to nearest even, and back.
inline void EncodeActivations(const float* values, int64_t count, char* payload) {
  kernels::EncodeFileRow(kernels::WeightType::kBF16, values, count, reinterpret_cast<uint8_t*>(payload));
}
inline void DecodeActivations(const char* payload, int64_t count, float* out) {
  kernels::UnpackFileRow(kernels::WeightType::kBF16, reinterpret_cast<const uint8_t*>(payload), count, out);
}

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_FRAME_H_
