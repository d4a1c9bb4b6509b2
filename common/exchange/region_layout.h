#ifndef ISOTHERM_COMMON_EXCHANGE_REGION_LAYOUT_H_
#define ISOTHERM_COMMON_EXCHANGE_REGION_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/base/round_up.h"
#include "common/exchange/descriptor.h"
#include "common/exchange/geometry.h"
#include "common/neuron/mask.h"

// The bytes both sides of an exchange agree on: the shared-memory region, and the frames of the inline
// transport. Change anything here or in descriptor.h and kRegionLayoutVersion goes up.
//
// A region is a header of one page and then a ring of slots. One exchange is: the client fills the slot of
// its sequence number (payload and descriptor), then stores the sequence number to the request doorbell with
// release; the server loads it with acquire, computes, fills the answer half of the slot, then stores the
// same number to the answer doorbell with release. The client may ring for as many exchanges as there are
// slots before it awaits the first answer; the server answers them one after another.
//
// Between two requests the client may say what it expects the next one to ask for: it fills `expected` in the
// slot of that request and stores its sequence number to the expectation doorbell. The server may fetch the
// neurons into its caches meanwhile; nothing depends on it.
namespace isotherm::exchange {

inline constexpr uint64_t kRegionMagic = 0x6d72'6568'746f'7369;  // "isotherm" as bytes
inline constexpr uint32_t kRegionLayoutVersion = 2;
inline constexpr int64_t kRegionHeaderBytes = 4096;

struct RegionHeader {
  // Written by the server before anyone else can see the region, then constant.
  uint64_t magic;
  uint64_t generation;  // random: no two regions share one
  uint64_t region_bytes;
  uint32_t layout_version;
  uint32_t slots;
  uint32_t layers;
  uint32_t hidden;
  uint32_t ffn;
  uint32_t max_rows;
  uint32_t gate_values;  // 0 or 1

  // Accessed atomically, each on a cache line of its own.
  alignas(kCacheLine) uint32_t request_doorbell;  // client: sequence of the last request
  alignas(kCacheLine) uint32_t answer_doorbell;   // server: sequence of the last answer
  alignas(kCacheLine) uint32_t step_open;         // client: StepState
  alignas(kCacheLine) uint32_t failed;            // either: 1 for ever once the region is dead
  alignas(kCacheLine) uint32_t server_parked;     // futex words, see doorbell.h
  alignas(kCacheLine) uint32_t client_parked;
  alignas(kCacheLine) uint32_t expectation_doorbell;  // client: sequence of the request expected
};
static_assert(sizeof(RegionHeader) == 8 * kCacheLine && std::is_trivially_copyable_v<RegionHeader>);
static_assert(sizeof(RegionHeader) <= kRegionHeaderBytes);
static_assert(offsetof(RegionHeader, request_doorbell) == 64 &&
              offsetof(RegionHeader, answer_doorbell) == 128);
static_assert(offsetof(RegionHeader, step_open) == 192 && offsetof(RegionHeader, failed) == 256);
static_assert(offsetof(RegionHeader, server_parked) == 320 && offsetof(RegionHeader, client_parked) == 384);
static_assert(offsetof(RegionHeader, expectation_doorbell) == 448);

// Offsets inside a slot and the sizes that follow. The geometry has passed CheckGeometry.
struct RegionLayout {
  int64_t x = 0;            // F32 [rows, hidden]
  int64_t masks = 0;        // u64 [rows, MaskWords(ffn)]
  int64_t gate_values = 0;  // F32, at most rows * ffn; equal to `answer` where the geometry has none
  int64_t answer = 0;       // Descriptor
  int64_t y = 0;            // F32 [rows, hidden]
  int64_t expected = 0;     // Expectation, then u64 [MaskWords(ffn)]: cold neurons that some row will want
  int64_t slot_bytes = 0;
  int64_t region_bytes = 0;  // whole pages
};

constexpr RegionLayout MakeRegionLayout(const Geometry& geometry, uint32_t slots) {
  const int64_t activations = base::RoundUp(geometry.max_rows * geometry.hidden * 4, kCacheLine);
  const int64_t masks = base::RoundUp(geometry.max_rows * neuron::MaskWords(geometry.ffn) * 8, kCacheLine);
  const int64_t gates =
      geometry.gate_values ? base::RoundUp(geometry.max_rows * geometry.ffn * 4, kCacheLine) : 0;
  RegionLayout layout;
  layout.x = sizeof(Descriptor);
  layout.masks = layout.x + activations;
  layout.gate_values = layout.masks + masks;
  layout.answer = layout.gate_values + gates;
  layout.y = layout.answer + static_cast<int64_t>(sizeof(Descriptor));
  layout.expected = layout.y + activations;
  layout.slot_bytes = layout.expected + base::RoundUp(static_cast<int64_t>(sizeof(Expectation)) +
                                                          neuron::MaskWords(geometry.ffn) * 8,
                                                      kCacheLine);
  layout.region_bytes = kRegionHeaderBytes + base::RoundUp(layout.slot_bytes * slots, kRegionHeaderBytes);
  return layout;
}

// Offsets inside the payload of an inline request: the arrays of a slot without the unused room, x in the
// geometry's type. An answer's payload is y alone, in that type.
struct FrameLayout {
  int64_t masks = 0;  // x is at 0
  int64_t gate_values = 0;
  int64_t bytes = 0;
};

constexpr FrameLayout MakeFrameLayout(const Geometry& geometry, int64_t rows, int64_t gate_value_count) {
  FrameLayout layout;
  layout.masks = base::RoundUp(rows * geometry.hidden * geometry.activation_bytes(), 8);  // u64 words
  layout.gate_values = layout.masks + rows * neuron::MaskWords(geometry.ffn) * 8;
  layout.bytes = layout.gate_values + gate_value_count * 4;
  return layout;
}

constexpr int64_t AnswerBytes(const Geometry& geometry, int64_t rows) {
  return rows * geometry.hidden * geometry.activation_bytes();
}

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_REGION_LAYOUT_H_
