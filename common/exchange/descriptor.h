#ifndef ISOTHERM_COMMON_EXCHANGE_DESCRIPTOR_H_
#define ISOTHERM_COMMON_EXCHANGE_DESCRIPTOR_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

// The part of region_layout.h that device code writes and reads: plain data, without dependence on any
// library.
namespace isotherm::exchange {

static_assert(std::endian::native == std::endian::little, "the layout is little-endian");

inline constexpr int64_t kCacheLine = 64;

// Two slots: two exchanges may be in flight, and the answer of one stays whole while the next request is
// being written.
inline constexpr uint32_t kSlots = 2;
static_assert(std::has_single_bit(kSlots),
              "sequence % slots must stay in step when the 32-bit sequence number wraps");

enum DescriptorFlag : uint32_t {
  kFlagDense = 1u << 0,       // compute up and down also where the gate is zero
  kFlagGateValues = 1u << 1,  // the compacted gate activations are present
  // Inline transport only, without a payload and without an answer: what RegionHeader::step_open says in
  // shared memory.
  kFlagStepOpens = 1u << 2,
  kFlagStepCloses = 1u << 3,
};
inline constexpr uint32_t kRequestFlags = kFlagDense | kFlagGateValues;

// Describes a request; the answer carries it again, with the last three fields and the time filled in.
struct Descriptor {
  uint64_t step;
  uint64_t
      generation;  // RegionHeader::generation; 0 inline, where the stream itself is new with every connection
  uint64_t placement_epoch;
  // Answer: CLOCK_MONOTONIC of the server in nanoseconds. The same clock as the client's on one host.
  uint64_t answered_at_ns;
  uint32_t layer;
  uint32_t rows;
  uint32_t flags;
  uint32_t gate_value_count;
  uint32_t sequence;  // the doorbells' value for this exchange; the first is 1
  uint32_t computed;  // answer: mask bits set, summed over rows
  uint32_t active;    // answer: of those, neurons that fired
  // Answer: nanoseconds that the server spent computing, at most 2^32 - 1.
  uint32_t compute_ns;
};
static_assert(sizeof(Descriptor) == kCacheLine && std::is_trivially_copyable_v<Descriptor>);
static_assert(offsetof(Descriptor, generation) == 8 && offsetof(Descriptor, placement_epoch) == 16);
static_assert(offsetof(Descriptor, answered_at_ns) == 24 && offsetof(Descriptor, layer) == 32);
static_assert(offsetof(Descriptor, rows) == 36 && offsetof(Descriptor, flags) == 40);
static_assert(offsetof(Descriptor, gate_value_count) == 44 && offsetof(Descriptor, sequence) == 48);
static_assert(offsetof(Descriptor, computed) == 52 && offsetof(Descriptor, active) == 56);
static_assert(offsetof(Descriptor, compute_ns) == 60);

// Heads the mask of the neurons that a request to come is expected to ask for.
struct Expectation {
  uint32_t layer;
  uint32_t reserved;
};
static_assert(sizeof(Expectation) == 8 && std::is_trivially_copyable_v<Expectation>);

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_DESCRIPTOR_H_
