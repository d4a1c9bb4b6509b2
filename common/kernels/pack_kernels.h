#ifndef ISOTHERM_COMMON_KERNELS_PACK_KERNELS_H_
#define ISOTHERM_COMMON_KERNELS_PACK_KERNELS_H_

#include <cstdint>

// The roundings of packed_row.h, which run over whole models while they load, vectorised for this CPU.
namespace isotherm::kernels {

struct PackKernels {
  // To the nearest, ties to even.
  void (*round_f16)(const float* values, int64_t n, uint16_t* out);
  void (*round_bf16)(const float* values, int64_t n, uint16_t* out);
  // The blocks of llama.cpp's reference quantisers, quants and F16 scales apart; n is a multiple of 32.
  void (*quantize_q8_0)(const float* values, int64_t n, int8_t* quants, uint16_t* scales);
  void (*quantize_q8_f32)(const float* values, int64_t n, int8_t* quants,
                          float* scales);  // Q8_0 but for its scales.
  void (*quantize_q4_0)(const float* values, int64_t n, uint8_t* nibbles, uint16_t* scales);
  // Blocks as files store them; n is a multiple of 256.
  void (*quantize_q4_k)(const float* values, int64_t n, uint8_t* blocks);
};

const PackKernels& GetPackKernels();

}  // namespace isotherm::kernels

#endif  // ISOTHERM_COMMON_KERNELS_PACK_KERNELS_H_
