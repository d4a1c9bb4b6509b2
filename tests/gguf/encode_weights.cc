#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/gguf/gguf_builder.h"

namespace isotherm::testing {
namespace {

constexpr size_t kBlock = 32;

// Rounds to nearest, ties to even.
uint16_t ToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7e00;
  if (magnitude >= 65520.0f) return sign | 0x7c00;  // rounds up past the largest half
  if (magnitude < 0x1p-14f) return sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f));
  int exponent;
  const float fraction =
      std::frexp(magnitude, &exponent);  // magnitude = fraction * 2^exponent, 0.5 <= fraction < 1
  // A mantissa that rounds up to 2048 carries into the exponent, which is the right result.
  const auto mantissa = static_cast<uint32_t>(std::nearbyint(fraction * 2048.0f));
  return sign | static_cast<uint16_t>(((exponent + 13) << 10) + mantissa);
}

void AppendHalf(Bytes& out, float value) {
  const uint16_t half = ToHalf(value);
  out.push_back(static_cast<uint8_t>(half));
  out.push_back(static_cast<uint8_t>(half >> 8));
}

void AppendQ8_0(Bytes& out, const float* x) {
  float largest = 0;
  for (size_t i = 0; i < kBlock; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float scale = largest / 127.0f;
  const float inverse = scale != 0 ? 1.0f / scale : 0.0f;
  AppendHalf(out, scale);
  for (size_t i = 0; i < kBlock; ++i) {
    out.push_back(static_cast<uint8_t>(static_cast<int8_t>(std::round(x[i] * inverse))));
  }
}

void AppendQ4_0(Bytes& out, const float* x) {
  float extreme = 0;  // the value of largest magnitude, with its sign, becomes quant -8
  for (size_t i = 0; i < kBlock; ++i) {
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  }
  const float scale = extreme / -8.0f;
  const float inverse = scale != 0 ? 1.0f / scale : 0.0f;
  const auto quant = [&](float value) {
    return static_cast<uint8_t>(std::min(15, static_cast<int>(value * inverse + 8.5f)));
  };
  AppendHalf(out, scale);
  for (size_t i = 0; i < kBlock / 2; ++i) {
    out.push_back(static_cast<uint8_t>(quant(x[i]) | quant(x[i + kBlock / 2]) << 4));
  }
}

[[noreturn]] void Abort(const char* reason) {
  std::fprintf(stderr, "EncodeWeights: %s\n", reason);
  std::abort();
}

}  // namespace

Bytes EncodeWeights(gguf::TensorType type, const std::vector<float>& values) {
  Bytes out;
  switch (type) {
    case gguf::TensorType::kF32:
      out.resize(values.size() * sizeof(float));
      std::memcpy(out.data(), values.data(), out.size());
      return out;
    case gguf::TensorType::kF16:
      for (const float value : values) AppendHalf(out, value);
      return out;
    case gguf::TensorType::kQ8_0:
    case gguf::TensorType::kQ4_0:
      if (values.size() % kBlock != 0) Abort("a partial block");
      for (size_t i = 0; i < values.size(); i += kBlock) {
        type == gguf::TensorType::kQ8_0 ? AppendQ8_0(out, &values[i]) : AppendQ4_0(out, &values[i]);
      }
      return out;
    default:
      Abort("this type cannot be written");
  }
}

}  // namespace isotherm::testing
