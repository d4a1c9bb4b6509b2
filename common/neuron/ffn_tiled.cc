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
      return;
    }
    for (int64_t row = 0; row < job_.rows; ++row) {
      for (int64_t t = 0; t < count_; ++t) {
        const int64_t neuron = job_.Neuron(wanted_[t]);
        Value(row, t) = TestBit(job_.Mask(row), neuron) ? job_.GateValue(row, neuron) : 0.0f;
      }
    }
  }

  // Activations where the row wants the neuron, zero elsewhere.
  FfnStatistics ActivateWanted() const {
    FfnStatistics statistics;
    for (int64_t row = 0; row < job_.rows; ++row) {
      const uint64_t* mask = job_.Mask(row);
      for (int64_t t = 0; t < count_; ++t) {
        float& value = Value(row, t);
        const int64_t neuron = job_.Neuron(wanted_[t]);
        const bool wanted = TestBit(mask, neuron);
        value = wanted ? job_.Activate(value) : 0.0f;
        statistics.computed += wanted;
        statistics.active += value != 0;
        if (job_.request->firings != nullptr) job_.request->firings[neuron] += value != 0;
      }
    }
    return statistics;
  }

  void MultiplyByUp() const {
    Unpack(job_.up, layout_.up_offset);
    Product(scratch_.up());
    const int64_t size = job_.rows * count_;
    // Where the activation is zero the product stays zero even if up overflowed: the row did not ask for it.
    for (int64_t i = 0; i < size; ++i) {
      float& value = scratch_.gate()[i];
      value = value == 0 ? 0.0f : value * scratch_.up()[i];
    }
  }

  void AddDown(bool accumulate, float* y) const {
    Unpack(job_.down, layout_.down_offset);
    kernels::GemmNN(job_.rows, job_.hidden, count_, scratch_.gate(), count_, scratch_.weights(), job_.hidden,
                    accumulate, y, job_.hidden);
  }

 private:
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
    const FfnStatistics statistics = tile.ActivateWanted();
    partial->statistics.computed += statistics.computed;
    partial->statistics.active += statistics.active;
    if (statistics.active == 0 && !job.request->dense) continue;
    tile.MultiplyByUp();
    tile.AddDown(accumulate, partial->y);
    accumulate = true;
  }
  std::fill_n(partial->touched, job.rows, accumulate);
}

}  // namespace isotherm::neuron::internal
