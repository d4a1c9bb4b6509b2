#ifndef ISOTHERM_COMMON_NEURON_FFN_H_
#define ISOTHERM_COMMON_NEURON_FFN_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "common/base/thread_pool.h"
#include "common/model/model.h"
#include "common/neuron/bundle.h"

// The sparse FFN on the CPU, for the hot neurons of the host device and the cold neurons of the CPU worker
// alike: y[row] = sum over neurons j in the row's mask of act(gate_j . x) * (up_j . x) * down_j, ungated
// act(up_j . x + bias_j) * down_j. The down bias is the caller's to add.
namespace isotherm::neuron {

// Up to this many rows a request takes the sparse path, beyond it the tiled one. Where reading each bundle
// once still costs more than the arithmetic of the rows that want it.
inline constexpr int64_t kSparseRows = 16;

// Bundles of `count` neurons; bundle k belongs to neuron neuron_ids[k], or k itself where neuron_ids is null.
struct BundleView {
  const uint8_t* bundles = nullptr;
  const BundleLayout* layout = nullptr;
  const int32_t* neuron_ids = nullptr;  // in any order
  int64_t count = 0;
};

struct FfnRequest {
  int64_t rows = 0;
  const float* x = nullptr;         // [rows, hidden]
  const uint64_t* masks = nullptr;  // [rows, MaskWords(ffn)]
  int64_t ffn = 0;
  // Compacted pre-activations (gate . x, ungated up . x + bias): for each row in order, one F32 for each set
  // bit of that row's mask in ascending order. The first rows of bundles are then not read. Null: compute
  // them.
  const float* gate_values = nullptr;
  // Compute all rows also where the activation is zero (dense models, the measure of a dense run).
  bool dense = false;
  model::Activation activation = model::Activation::kRelu;
  float activation_threshold = 0;
  // Counters of the layer, [ffn] by neuron number: one more for each row in which the neuron's activation is
  // not zero. Null: firings are not counted.
  uint64_t* firings = nullptr;
};

struct FfnStatistics {
  int64_t computed = 0;  // mask bits set for neurons of the view, summed over rows
  int64_t active = 0;    // of those, with act(gate) * up (ungated: the activation) not zero
  int64_t bytes = 0;     // of the bundles' rows read, each once for up to 512 of the request's rows

  FfnStatistics& operator+=(const FfnStatistics& other) {
    computed += other.computed;
    active += other.active;
    bytes += other.bytes;
    return *this;
  }
};

// Owns the workspace. Thread-compatible.
class FfnExecutor {
 public:
  // `max_rows` rows at most in one request.
  FfnExecutor(base::ThreadPool* pool, int64_t hidden, int64_t ffn, int64_t max_rows);
  ~FfnExecutor();

  // Memory that such an executor takes, for plans made before it exists.
  static int64_t WorkspaceBytes(int threads, int64_t hidden, int64_t ffn, int64_t max_rows);

  // Overwrites y[rows, hidden]. A row's result is the sum over exactly the neurons whose bit is set in its
  // own mask.
  //   Up to kSparseRows rows each bundle in the union of the masks is read once and applied to the rows that
  //   want it. Neurons are summed in the view's order within partitions of it that depend on the number of
  //   threads alone, so that a row's result is the same bit for bit whatever shares its request. Beyond,
  //   tiles of bundles go through a dense GEMM and the masks are applied to the activations; a row's sums are
  //   then ordered by the union of the masks and the threads, and equal between runs of the same request.
  // Does not allocate.
  FfnStatistics Run(const BundleView& view, const FfnRequest& request, float* y);

  // Asks for the bundles of the neurons in `mask` [MaskWords(ffn)] to be brought into the caches where Run
  // will look for them if at most kSparseRows rows want them and the pool's members, more than four, stay on
  // their cores; with fewer, into caches that cores share.
  // Returns when all are asked for or soon after stop(), which every member calls, has become true.
  void Prefetch(const BundleView& view, const uint64_t* mask, absl::FunctionRef<bool()> stop);

 private:
  struct Workspace;
  std::unique_ptr<Workspace> workspace_;
};

}  // namespace isotherm::neuron

#endif  // ISOTHERM_COMMON_NEURON_FFN_H_
