#ifndef ISOTHERM_COMMON_NEURON_MASK_H_
#define ISOTHERM_COMMON_NEURON_MASK_H_

#include <cstdint>

// Activation masks: bit j % 64 of word j / 64 set means "compute neuron j". Rows lie one after another,
// MaskWords(neurons) words each; bits past the last neuron are zero.
namespace isotherm::neuron {

inline constexpr int64_t MaskWords(int64_t neurons) { return (neurons + 63) / 64; }
inline bool TestBit(const uint64_t* mask, int64_t neuron) { return (mask[neuron / 64] >> (neuron % 64)) & 1; }
inline void SetBit(uint64_t* mask, int64_t neuron) { mask[neuron / 64] |= uint64_t{1} << (neuron % 64); }
inline void ClearBit(uint64_t* mask, int64_t neuron) { mask[neuron / 64] &= ~(uint64_t{1} << (neuron % 64)); }
int64_t CountBits(const uint64_t* mask, int64_t words);
// Sets bits 0..neurons-1 and clears the rest of the last word.
void SetAll(uint64_t* mask, int64_t neurons);

// Calls function(neuron) for every set bit in ascending order.
template <typename Function>
void ForEachSet(const uint64_t* mask, int64_t words, const Function& function) {
  for (int64_t w = 0; w < words; ++w) {
    for (uint64_t bits = mask[w]; bits != 0; bits &= bits - 1) function(w * 64 + __builtin_ctzll(bits));
  }
}

}  // namespace isotherm::neuron

#endif  // ISOTHERM_COMMON_NEURON_MASK_H_
