#include <algorithm>

#include "common/kernels/ops.h"
#include "common/neuron/ffn_internal.h"

namespace isotherm::neuron::internal {
namespace {

// A tile of the wanted neurons for all rows of the job.
class Tile {
 public:
  Tile(const Job& job, const int32_t* wanted, int64_t count, const TileScratch& scratch)
      : job_(job), layout_(*job.view->layout), wanted_(wanted), count_(count), scratch_(scratch) {}

  // Pre-activations [rows, neurons] at gate().
  void Gate() const {
    if (job_.request->gate_values == nullptr) {
      Unpack(job_.gate, 0);
      Product(scratch_.gate());
      if (layout_.bias_offset != 0) AddBiases();
      return;
    }
    for (int64_t row = 0; row < job_.rows; ++row) {
      for (int64_t t = 0; t < count_; ++t) {
        const int64_t neuron = job_.Neuron(wanted_[t]);
        Value(row, t) = TestBit(job_.Mask(row), neuron) ? job_.GateValue(row, neuron) : 0.0f;
      }
    }
  }

  // Activations where the row wants the neuron, zero elsewhere. Returns how many are wanted.
  int64_t ActivateWanted() const {
    int64_t computed = 0;
    for (int64_t row = 0; row < job_.rows; ++row) {
      const uint64_t* mask = job_.Mask(row);
      for (int64_t t = 0; t < count_; ++t) {
        float& value = Value(row, t);
        const bool wanted = TestBit(mask, job_.Neuron(wanted_[t]));
        value = wanted ? job_.Activate(value) : 0.0f;
        computed += wanted;
      }
    }
    return computed;
  }

  bool AnyActive() const {
    const float* values = scratch_.gate();
    return std::any_of(values, values + job_.rows * count_, [](float value) { return value != 0; });
  }

  void MultiplyByUp() const {
    Unpack(job_.up, layout_.up_offset);
    Product(scratch_.up());
    const int64_t size = job_.rows * count_;
    const bool double_relu = job_.double_relu();
    // Where the activation is zero the product stays zero even if up overflowed: the row did not ask for it.
    for (int64_t i = 0; i < size; ++i) {
      float& value = scratch_.gate()[i];
      const float up = scratch_.up()[i];
      value = value == 0 ? 0.0f : value * (double_relu ? Relu(up) : up);
    }
  }

  // How many neurons fire, over all rows.
  int64_t CountFirings() const {
    int64_t active = 0;
    for (int64_t row = 0; row < job_.rows; ++row) {
      for (int64_t t = 0; t < count_; ++t) {
        const bool fires = Value(row, t) != 0;
        active += fires;
        if (job_.request->firings != nullptr) job_.request->firings[job_.Neuron(wanted_[t])] += fires;
      }
    }
    return active;
  }

  int64_t FirstBytes() const {
    return job_.request->gate_values == nullptr ? count_ * layout_.first_bytes() : 0;
  }
  int64_t OtherBytes() const { return count_ * (layout_.up_bytes() + layout_.down_bytes()); }

  void AddDown(bool accumulate, float* y) const {
    Unpack(job_.down, layout_.down_offset);
    kernels::GemmNN(job_.rows, job_.hidden, count_, scratch_.gate(), count_, scratch_.weights(), job_.hidden,
                    accumulate, y, job_.hidden);
  }

 private:
  void AddBiases() const {
    for (int64_t t = 0; t < count_; ++t) {
      const float bias = layout_.Bias(job_.Bundle(wanted_[t]));
      for (int64_t row = 0; row < job_.rows; ++row) Value(row, t) += bias;
    }
  }

  float& Value(int64_t row, int64_t t) const { return scratch_.gate()[row * count_ + t]; }

  void Unpack(const kernels::RowKernels& kernels, int64_t offset) const {
    for (int64_t t = 0; t < count_; ++t) {
      kernels.unpack(job_.Bundle(wanted_[t]) + offset, job_.hidden, scratch_.weights() + t * job_.hidden);
    }
  }
  void Product(float* out) const {
    kernels::GemmNT(job_.rows, count_, job_.hidden, job_.X(0), job_.hidden, scratch_.weights(), job_.hidden,
                    false, out, count_);
  }

  const Job& job_;
  const BundleLayout& layout_;
  const int32_t* wanted_;
  int64_t count_;
  const TileScratch& scratch_;
};

}  // namespace

int64_t TileScratch::Neurons(int64_t hidden) {
  return std::clamp<int64_t>((int64_t{1} << 18) / hidden / 16 * 16, 32, 256);
}

int64_t TileScratch::Bytes(int64_t hidden) {
  return Neurons(hidden) * (hidden + 2 * kTiledRows) * sizeof(float);
}

TileScratch::TileScratch(int64_t hidden)
    : neurons_(Neurons(hidden)),
      weights_(neurons_ * hidden),
      gate_(kTiledRows * neurons_),
      up_(kTiledRows * neurons_) {}

void ComputeTiled(const Job& job, const int32_t* wanted, int64_t count, const TileScratch& scratch,
                  Partial* partial) {
  bool accumulate = false;
  for (int64_t begin = 0; begin < count; begin += scratch.neurons()) {
    const Tile tile(job, wanted + begin, std::min(scratch.neurons(), count - begin), scratch);
    tile.Gate();
    partial->statistics.bytes += tile.FirstBytes();
    partial->statistics.computed += tile.ActivateWanted();
    if (!tile.AnyActive() && !job.request->dense) continue;
    if (job.view->layout->gated) tile.MultiplyByUp();
    partial->statistics.active += tile.CountFirings();
    partial->statistics.bytes += tile.OtherBytes();
    tile.AddDown(accumulate, partial->y);
    accumulate = true;
  }
  std::fill_n(partial->touched, job.rows, accumulate);
}

}  // namespace isotherm::neuron::internal
