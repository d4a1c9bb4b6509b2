#ifndef ISOTHERM_COMMON_NEURON_FFN_INTERNAL_H_
#define ISOTHERM_COMMON_NEURON_FFN_INTERNAL_H_

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <numbers>
#include <vector>

#include "absl/types/span.h"
#include "common/kernels/row_kernels.h"
#include "common/neuron/ffn.h"
#include "common/neuron/mask.h"

// What the two paths of FfnExecutor share.
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

// A request as the paths see it: `rows` of its rows from `first_row` on.
struct Job {
  const BundleView* view = nullptr;
  const FfnRequest* request = nullptr;
  const GateIndex* gate_index = nullptr;  // built where the request has gate values
  const uint64_t* union_mask = nullptr;   // of these rows
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t hidden = 0;
  int64_t words = 0;
  kernels::RowKernels gate, up, down;
  kernels::RowInputs gate_inputs, up_inputs;  // of these rows, in the sparse path

  int64_t Neuron(int64_t k) const { return view->neuron_ids == nullptr ? k : view->neuron_ids[k]; }
  const uint8_t* Bundle(int64_t k) const { return view->bundles + k * view->layout->bundle_bytes; }
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

// The sparse path on many cores. First the pool's members compute, for the neurons that some row wants, what
// each row's down rows are multiplied with. When all factors are known each member adds up its own columns of
// y over the neurons in the view's order. So a row's sums depend neither on the threads nor on what shares
// its request, nothing is left to be reduced, and no member waits for a long one.
struct SparseWork {
  const int32_t* wanted = nullptr;  // positions in the view, ascending
  int64_t count = 0;
  float* factors = nullptr;  // [rows, count]; 0: the row leaves the neuron out
};

// Shares the wanted neurons out: a queue for each member of the pool, which helps the others when its own is
// empty. A position of the view is in the same member's queue in every request, so that rows which were asked
// for in advance lie in the cache of the core that reads them.
class Queues {
 public:
  Queues(int64_t members, int64_t most_positions) : queues_(members), entries_(most_positions) {}

  // Entries of one queue: indices into SparseWork::wanted.
  struct Claim {
    const int32_t* entries = nullptr;
    int64_t count = 0;
  };

  void Fill(const int32_t* wanted, int64_t count);
  // For `member`: half of what is left of a queue, at most `longest`, so that all finish together. Empty when
  // nothing is left at all. Thread-safe.
  Claim Take(int64_t member, int64_t longest);

  // The whole queue of a member.
  absl::Span<const int32_t> Own(int64_t member) const {
    const Queue& queue = queues_[member];
    return absl::MakeConstSpan(entries_).subspan(queue.begin, queue.end - queue.begin);
  }

 private:
  // On cache lines of its own.
  struct alignas(64) Queue {
    std::atomic<int64_t> next{0};
    int64_t begin = 0, end = 0;
  };
  // Calls function(queue, i) for the wanted positions in order, with the queue of the owner of each.
  template <typename Function>
  void ForEachOwned(const int32_t* wanted, int64_t count, const Function& function);

  std::vector<Queue> queues_;
  std::vector<int32_t> entries_;  // one queue's after another's
};

// Longest claim for requests of so many rows.
int64_t LongestClaim(int64_t rows);
// Fills in the factors of the neurons that the member claims.
FfnStatistics ComputeFactors(const Job& job, const SparseWork& work, int64_t member, Queues& queues);
// Columns [begin, end) of y are the member's in the second half.
struct Columns {
  int64_t begin = 0, end = 0;
};
Columns OwnColumns(const BundleLayout& layout, int64_t member, int64_t members);
// No member has more columns, and a gap stays behind them.
int64_t MostOwnColumns(int64_t hidden, int64_t members);
// y[rows, hidden], the columns alone. They are summed in `sums` [rows, columns] first: cores that write to
// neighbouring lines of y over and over would take them from each other.
void AddDownColumns(const Job& job, const SparseWork& work, const Columns& columns, float* sums, float* y);

// Result of one partition of the neurons.
struct Partial {
  float* y = nullptr;          // [rows, hidden]; a row is valid where touched
  uint8_t* touched = nullptr;  // [rows]
  FfnStatistics statistics;
};

// The sparse path on few cores, whose memory is fastest when each reads whole bundles: the wanted positions
// of one partition of the view.
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
