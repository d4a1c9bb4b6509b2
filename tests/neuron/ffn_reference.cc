#include "tests/neuron/ffn_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/kernels/tolerance.h"
#include "common/neuron/mask.h"

namespace isotherm::neuron {
namespace {

double Norm(const float* values, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(values[i]) * values[i];
  return std::sqrt(sum);
}

double Dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// Value, bound on the error of the F32 form when the gate is off by `gate_error`, and whether that error may
// decide.
struct Activated {
  double value;
  double error;
  bool undecided;
};

Activated ActivateWithBound(const FfnRequest& request, double gate, double gate_error) {
  if (request.activation == model::Activation::kSilu) {
    const double value = gate / (1 + std::exp(-gate));
    // The slope of SiLU is below 1.1; exp and the division are good to a few units in the last place.
    return {value, 1.1 * gate_error + 16 * kernels::UnitRoundOff() * std::abs(value), false};
  }
  const double edge = request.activation == model::Activation::kFatRelu ? request.activation_threshold : 0.0;
  const bool undecided = std::abs(gate - edge) <= gate_error;
  return {gate <= edge ? 0.0 : gate, undecided ? std::abs(edge) + 2 * gate_error : gate_error, undecided};
}

}  // namespace

uint8_t* AlignTo64(std::vector<uint8_t>& storage) {
  return storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64;
}

RandomLayer::RandomLayer(kernels::WeightType type, int64_t hidden, int64_t ffn, uint32_t seed)
    : type_(type), ffn_(ffn) {
  weights_.hidden = hidden;
  const int64_t row_bytes = kernels::PackedRowBytes(type, hidden);
  layout_ = {type, type, type, hidden, row_bytes, 2 * row_bytes, 3 * row_bytes};
  storage_.resize(ffn * layout_.bundle_bytes + 63);
  std::mt19937 random(seed);
  for (int64_t j = 0; j < ffn; ++j) {
    uint8_t* bundle = AlignTo64(storage_) + j * layout_.bundle_bytes;
    for (auto [values, offset] :
         {std::pair(&weights_.gate, int64_t{0}), std::pair(&weights_.up, layout_.up_offset),
          std::pair(&weights_.down, layout_.down_offset)}) {
      const std::vector<float> row = PackRandomRow(random, bundle + offset);
      values->insert(values->end(), row.begin(), row.end());
    }
  }
}

std::vector<float> RandomLayer::PackRandomRow(std::mt19937& random, uint8_t* packed) const {
  std::normal_distribution<float> normal(0, 0.1f);
  std::vector<float> values(hidden());
  for (float& value : values) value = normal(random);
  kernels::PackFloatRow(type_, values.data(), hidden(), packed);
  kernels::UnpackRow(type_, packed, hidden(), values.data());
  return values;
}

const uint8_t* RandomLayer::Bundles() const { return AlignTo64(const_cast<std::vector<uint8_t>&>(storage_)); }

BundleView RandomLayer::Only(const std::vector<int32_t>& neurons, std::vector<uint8_t>* storage) const {
  storage->assign(neurons.size() * layout_.bundle_bytes + 63, 0);
  uint8_t* out = AlignTo64(*storage);
  for (size_t k = 0; k < neurons.size(); ++k) {
    std::memcpy(out + k * layout_.bundle_bytes, Bundles() + neurons[k] * layout_.bundle_bytes,
                layout_.bundle_bytes);
  }
  return {out, &layout_, neurons.data(), static_cast<int64_t>(neurons.size())};
}

ReferenceResult Reference(const LayerWeights& layer, const std::vector<int32_t>& neurons,
                          const FfnRequest& request) {
  const int64_t hidden = layer.hidden;
  const int64_t words = MaskWords(request.ffn);
  ReferenceResult result;
  result.y.assign(request.rows * hidden, 0.0);
  result.bound.assign(request.rows * hidden, 0.0);
  for (int64_t row = 0; row < request.rows; ++row) {
    const float* x = request.x + row * hidden;
    const double x_norm = Norm(x, hidden);
    std::vector<double> squares(hidden, 0.0);
    int64_t terms = 0;
    double h_squares = 0;
    for (int32_t neuron : neurons) {
      if (!TestBit(request.masks + row * words, neuron)) continue;
      ++result.statistics.computed;
      const double gate_error = kernels::DotTolerance(hidden, Norm(layer.Gate(neuron), hidden), x_norm);
      const Activated activated = ActivateWithBound(request, Dot(layer.Gate(neuron), x, hidden), gate_error);
      result.undecided += activated.undecided;
      result.statistics.active += activated.value != 0;
      const double up = Dot(layer.Up(neuron), x, hidden);
      const double up_error = kernels::DotTolerance(hidden, Norm(layer.Up(neuron), hidden), x_norm);
      const double h = activated.value * up;
      const double h_error =
          activated.error * (std::abs(up) + up_error) + std::abs(activated.value) * up_error;
      ++terms;
      h_squares += h * h;
      for (int64_t c = 0; c < hidden; ++c) {
        const double down = layer.Down(neuron)[c];
        result.y[row * hidden + c] += h * down;
        result.bound[row * hidden + c] += h_error * std::abs(down);
        squares[c] += down * down;
      }
    }
    for (int64_t c = 0; c < hidden; ++c) {
      result.bound[row * hidden + c] +=
          kernels::DotTolerance(std::max<int64_t>(terms, 1), std::sqrt(h_squares), std::sqrt(squares[c]));
    }
  }
  return result;
}

}  // namespace isotherm::neuron
