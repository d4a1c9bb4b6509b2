#ifndef ISOTHERM_COMMON_NEURON_FFN_INTERNAL_H_
#define ISOTHERM_COMMON_NEURON_FFN_INTERNAL_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <numbers>
#include <thread>
#include <vector>

#include "common/base/cpu_relax.h"
#include "common/kernels/row_kernels.h"
#include "common/kernels/shared_rows.h"
#include "common/neuron/ffn.h"
#include "common/neuron/mask.h"

// What the paths of FfnExecutor share.
namespace isotherm::neuron::internal {

// NaN stays NaN, so that a broken input shows in the output instead of vanishing.
inline float Relu(float value) { return value <= 0 ? 0.0f : value; }
inline float Activate(model::Activation activation, float threshold, float value) {
  switch (activation) {
    case model::Activation::kRelu:
    case model::Activation::kDRelu:
      return Relu(value);
    case model::Activation::kFatRelu:
      return value <= threshold ? 0.0f : value;
    case model::Activation::kRelu2:
      return Relu(value) * Relu(value);
    case model::Activation::kGelu:
      return 0.5f * value * (1.0f + std::erf(value * std::numbers::sqrt2_v<float> / 2));
    case model::Activation::kSilu:
      break;
  }
  return value / (1.0f + std::exp(-value));
}

// Waits for other threads: a few microseconds, unless they need this core.
template <typename Done>
void AwaitTrue(const Done& done) {
  constexpr int kLooksBeforeYield = 100;
  for (int look = 0; !done(); ++look) look < kLooksBeforeYield ? base::CpuRelax() : std::this_thread::yield();
}

// F32 on cache lines of its own.
class AlignedFloats {
 public:
  explicit AlignedFloats(int64_t size)
      : data_(static_cast<float*>(::operator new (size * sizeof(float), std::align_val_t{64}))) {}
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* data) const { ::operator delete (data, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> data_;
};

// Where a neuron's value lies in the compacted gate array.
class GateIndex {
 public:
  GateIndex(int64_t rows, int64_t words) : words_(words), before_(rows * words) {}

  void Build(const uint64_t* masks, int64_t rows) {
    masks_ = masks;
    int64_t set = 0;
    for (int64_t w = 0; w < rows * words_; ++w) {
      before_[w] = set;
      set += __builtin_popcountll(masks[w]);
    }
  }
  // The neuron's bit is set in the row's mask.
  int64_t At(int64_t row, int64_t neuron) const {
    const int64_t word = row * words_ + neuron / 64;
    return before_[word] + __builtin_popcountll(masks_[word] & ((uint64_t{1} << (neuron % 64)) - 1));
  }

 private:
  int64_t words_;
  const uint64_t* masks_ = nullptr;
  std::vector<int64_t> before_;  // bits set before each word, over all rows
};

// Neurons whose rows the sparse path reads side by side. 8 to 16 were read equally fast, 64 a tenth slower (a
// request of 8 rows, F16, one core of a Xeon with AVX-512).
inline constexpr int64_t kBlock = 8;

// A request as the paths see it: `rows` of its rows from `first_row` on.
struct Job {
  const BundleView* view = nullptr;
  const FfnRequest* request = nullptr;
  kernels::RowInputs gate_inputs, up_inputs;  // of these rows, in the sparse path
  const GateIndex* gate_index = nullptr;      // built where the request has gate values
  const uint64_t* union_mask = nullptr;       // of these rows
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t hidden = 0;
  int64_t words = 0;
  kernels::RowKernels gate, up, down;
  kernels::SharedRowKernels shared_gate, shared_up, shared_down;

  int64_t Neuron(int64_t k) const { return view->neuron_ids == nullptr ? k : view->neuron_ids[k]; }
  const uint8_t* Bundle(int64_t k) const { return view->bundles + k * view->layout->bundle_bytes; }
  // Bit i: some row wants position first + i of the view, i < kBlock. `first` is a multiple of kBlock.
  uint64_t WantedInBlock(int64_t first) const {
    static_assert(64 % kBlock == 0);
    const int64_t count = std::min(kBlock, view->count - first);
    const uint64_t within = (uint64_t{1} << count) - 1;
    if (view->neuron_ids == nullptr) return union_mask[first / 64] >> (first % 64) & within;
    uint64_t wanted = 0;
    for (int64_t i = 0; i < count; ++i) wanted |= uint64_t{TestBit(union_mask, Neuron(first + i))} << i;
    return wanted;
  }
  const float* X(int64_t row) const { return request->x + (first_row + row) * hidden; }
  const uint64_t* Mask(int64_t row) const { return request->masks + (first_row + row) * words; }
  float GateValue(int64_t row, int64_t neuron) const {
    return request->gate_values[gate_index->At(first_row + row, neuron)];
  }
  float Activate(float value) const {
    return internal::Activate(request->activation, request->activation_threshold, value);
  }
  bool double_relu() const { return request->activation == model::Activation::kDRelu; }
};

// Writes the positions in the view, of those in [begin, end), that some row wants; returns how many.
int64_t CollectWanted(const Job& job, int64_t begin, int64_t end, int32_t* wanted);

// Result of one partition of the neurons.
struct Partial {
  float* y = nullptr;          // [rows, hidden]; a row is valid where touched
  uint8_t* touched = nullptr;  // [rows]
  FfnStatistics statistics;
};

// The sparse path on few cores: the wanted positions of one partition of the view.
void ComputePartition(const Job& job, const int32_t* wanted, int64_t count, Partial* partial);

// Scratch of one thread in the tiled path, for kTiledRows rows at most.
class TileScratch {
 public:
  explicit TileScratch(int64_t hidden);
  static int64_t Bytes(int64_t hidden);
  int64_t neurons() const { return neurons_; }
  float* weights() const { return weights_.data(); }  // [neurons, hidden]
  float* gate() const { return gate_.data(); }        // [rows, neurons]
  float* up() const { return up_.data(); }            // [rows, neurons]

 private:
  // Neurons unpacked at a time: about 1 MiB of F32, half a server core's L2.
  static int64_t Neurons(int64_t hidden);

  int64_t neurons_;
  AlignedFloats weights_, gate_, up_;
};

// Rows that go through the tiled path together; bounds its workspace whatever the size of a request.
// Unpacking a tile costs about as much as the products of ten rows, so repeating it every 512 rows is 2 % at
// most.
inline constexpr int64_t kTiledRows = 512;
void ComputeTiled(const Job& job, const int32_t* wanted, int64_t count, const TileScratch& scratch,
                  Partial* partial);

}  // namespace isotherm::neuron::internal

#endif  // ISOTHERM_COMMON_NEURON_FFN_INTERNAL_H_
