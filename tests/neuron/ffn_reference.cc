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

// Value, bound on the error of the F32 form when its argument is off by `error`, and whether that error may
// decide.
struct Activated {
  double value;
  double error;
  bool undecided;
};

Activated ActivateWithBound(const FfnRequest& request, double p, double error) {
  if (request.activation == model::Activation::kSilu) {
    const double value = p / (1 + std::exp(-p));
    // The slope of SiLU is below 1.1; exp and the division are good to a few units in the last place.
    return {value, 1.1 * error + 16 * kernels::UnitRoundOff() * std::abs(value), false};
  }
  if (request.activation == model::Activation::kGelu) {
    // The slope is below 1.13; where erf is near -1, 1 + erf loses all but the absolute error.
    const double value = p / 2 * (1 + std::erf(p / std::sqrt(2)));
    return {value, 1.13 * error + 4 * kernels::UnitRoundOff() * std::abs(p), false};
  }
  const double edge = request.activation == model::Activation::kFatRelu ? request.activation_threshold : 0.0;
  const bool undecided = std::abs(p - edge) <= error;
  const Activated relu{p <= edge ? 0.0 : p, undecided ? std::abs(edge) + 2 * error : error, undecided};
  if (request.activation != model::Activation::kRelu2) return relu;
  const double square_error = (2 * relu.value + relu.error) * relu.error;
  return {relu.value * relu.value, square_error + 2 * kernels::UnitRoundOff() * relu.value * relu.value,
          undecided};
}

// What act(gate . x) is multiplied by.
Activated SecondFactor(const LayerWeights& layer, const FfnRequest& request, int64_t neuron, const float* x,
                       double x_norm) {
  if (!layer.gated()) return {1, 0, false};
  const double up = Dot(layer.Up(neuron), x, layer.hidden);
  const double error =
      kernels::DotTolerance(layer.type, layer.hidden, Norm(layer.Up(neuron), layer.hidden), x_norm);
  if (request.activation != model::Activation::kDRelu) return {up, error, false};
  return {std::max(up, 0.0), error, std::abs(up) <= error};
}

}  // namespace

std::vector<float> RandomInput(int64_t rows, int64_t hidden, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> x(rows * hidden);
  for (float& value : x) value = normal(random);
  return x;
}

std::vector<uint64_t> RandomMasks(int64_t rows, int64_t ffn, double share, uint32_t seed) {
  std::mt19937 random(seed);
  std::bernoulli_distribution wanted(share);
  std::vector<uint64_t> masks(rows * MaskWords(ffn), 0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t j = 0; j < ffn; ++j) {
      if (wanted(random)) SetBit(&masks[row * MaskWords(ffn)], j);
    }
  }
  return masks;
}

uint8_t* AlignTo64(std::vector<uint8_t>& storage) {
  return storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64;
}

RandomLayer::RandomLayer(kernels::WeightType type, int64_t hidden, int64_t ffn, uint32_t seed, FfnForm form)
    : type_(type), ffn_(ffn) {
  weights_.hidden = hidden;
  weights_.type = type;
  MakeLayout(form);
  storage_.resize(ffn * layout_.bundle_bytes + 63);
  std::mt19937 random(seed);
  for (int64_t j = 0; j < ffn; ++j) {
    uint8_t* bundle = AlignTo64(storage_) + j * layout_.bundle_bytes;
    for (auto [values, offset] :
         {std::pair(&weights_.gate, int64_t{0}), std::pair(&weights_.up, layout_.up_offset),
          std::pair(&weights_.down, layout_.down_offset)}) {
      if (values == &weights_.up && !layout_.gated) continue;
      const std::vector<float> row = PackRandomRow(random, bundle + offset);
      values->insert(values->end(), row.begin(), row.end());
    }
    if (layout_.bias_offset == 0) continue;
    weights_.bias.push_back(std::normal_distribution<float>(0, 0.5f)(random));
    std::memcpy(bundle + layout_.bias_offset, &weights_.bias.back(), sizeof(float));
  }
}

void RandomLayer::MakeLayout(FfnForm form) {
  constexpr int64_t kBiasBytes = 64;
  const int64_t row_bytes = kernels::PackedRowBytes(type_, hidden());
  layout_ = {type_, type_, type_, hidden(), row_bytes, 2 * row_bytes, 3 * row_bytes};
  if (form == FfnForm::kGated) return;
  layout_.gated = false;
  layout_.up_offset = 0;
  layout_.down_offset = row_bytes;
  if (form == FfnForm::kUngatedWithBias) {
    layout_.bias_offset = row_bytes;
    layout_.down_offset += kBiasBytes;
  }
  layout_.bundle_bytes = layout_.down_offset + row_bytes;
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
    constexpr int64_t kBlockColumns = 32;
    // The largest term of each block's columns.
    std::vector<double> most((hidden + kBlockColumns - 1) / kBlockColumns, 0.0);
    int64_t terms = 0;
    double h_squares = 0;
    for (int32_t neuron : neurons) {
      if (!TestBit(request.masks + row * words, neuron)) continue;
      ++result.statistics.computed;
      const double p = Dot(layer.Gate(neuron), x, hidden) + layer.Bias(neuron);
      const double p_error =
          kernels::DotTolerance(layer.type, hidden, Norm(layer.Gate(neuron), hidden), x_norm) +
          kernels::UnitRoundOff() * std::abs(p);
      const Activated first = ActivateWithBound(request, p, p_error);
      const Activated second = SecondFactor(layer, request, neuron, x, x_norm);
      const double h = first.value * second.value;
      result.undecided += first.undecided || second.undecided;
      result.statistics.active += h != 0;
      const double h_error =
          first.error * (std::abs(second.value) + second.error) + std::abs(first.value) * second.error;
      ++terms;
      h_squares += h * h;
      for (int64_t c = 0; c < hidden; ++c) {
        const double down = layer.Down(neuron)[c];
        result.y[row * hidden + c] += h * down;
        result.bound[row * hidden + c] += h_error * std::abs(down);
        squares[c] += down * down;
        most[c / kBlockColumns] = std::max(most[c / kBlockColumns], std::abs(h * down));
      }
    }
    for (int64_t c = 0; c < hidden; ++c) {
      result.bound[row * hidden + c] +=
          kernels::DotTolerance(std::max<int64_t>(terms, 1), std::sqrt(h_squares), std::sqrt(squares[c])) +
          kernels::SumTolerance(layer.type, terms, most[c / kBlockColumns]);
    }
  }
  return result;
}

}  // namespace isotherm::neuron
