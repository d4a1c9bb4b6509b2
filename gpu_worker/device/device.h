#ifndef ISOTHERM_GPU_WORKER_DEVICE_DEVICE_H_
#define ISOTHERM_GPU_WORKER_DEVICE_DEVICE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/exchange/channel.h"
#include "common/kernels/ops.h"
#include "common/model/model.h"
#include "common/neuron/bundle.h"
#include "gpu_worker/device/hot_swap.h"
#include "gpu_worker/device/pass_input.h"

// The seam between the layer graph and what computes it. The graph speaks of device pointers and operators
// only; `host` runs them at once on CPU threads, `cuda` enqueues them on a stream that a graph can capture.
// So no operator returns a value, waits or decides anything on the host: what changes from step to step is
// uploaded by BeginPass, failures latch until EndPass.
namespace isotherm::gpu_worker {

enum class MemoryPurpose {
  kDevice,
  kEmbedding,
  kAttention,
  kHead,
  kKvCache,
  kPredictor,
  kWorkspace,
  kHotNeurons
};
inline constexpr int kMemoryPurposes = 8;
const char* MemoryPurposeName(MemoryPurpose purpose);

// Ways in which a device fails.
enum class DeviceFault { kLost, kOutOfMemory };

// Device memory, 64-byte aligned, freed with its owner.
class Buffer {
 public:
  Buffer() = default;
  Buffer(uint8_t* data, int64_t bytes, std::shared_ptr<void> owner)
      : data_(data), bytes_(bytes), owner_(std::move(owner)) {}
  uint8_t* data() const { return data_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
  std::shared_ptr<void> owner_;
};

// How tokens become hidden states.
struct Embedding {
  kernels::WeightMatrix tokens;  // [vocabulary, hidden]
  float scale = 1;
  kernels::WeightMatrix positions;  // [positions, hidden] in models with learned ones, else its data is null
  int64_t position_offset = 0;
};

// One norm of the model; `bias` may be null.
struct Norm {
  model::NormKind kind = model::NormKind::kRms;
  float epsilon = 0;
  const float* weight = nullptr;
  const float* bias = nullptr;
};

// scale * (x [rows, n] + bias [n]), added to something of that shape; bias may be null.
struct Term {
  const float* x = nullptr;
  const float* bias = nullptr;
  float scale = 1;
};

// The same of an FFN, of which `part` is the hot neurons' part: scale * (part + the rest + bias).
struct FfnTerm {
  float* part = nullptr;
  const float* bias = nullptr;
  float scale = 1;
};

// weight . x + bias [weight.rows], written to y [rows, weight.rows]; bias may be null.
struct Product {
  kernels::WeightMatrix weight;
  const float* bias = nullptr;
  float* y = nullptr;
};

// The hot neurons of one layer. Their number stays as loaded, which ones they are changes with SwapHot.
struct HotLayer {
  uint8_t* bundles = nullptr;
  neuron::BundleLayout layout;
  int32_t* neuron_ids = nullptr;  // [count], of the bundles in their order, which is any
  int64_t count = 0;
  uint64_t* hot_mask = nullptr;  // [MaskWords(ffn)]
};

// One layer's FFN work for the rows of the pass.
struct FfnCall {
  int64_t layer = 0;
  int64_t rows = 0;
  const float* x = nullptr;         // [rows, hidden], the FFN input
  const uint64_t* masks = nullptr;  // [rows, MaskWords(ffn)], hot and cold
  // [rows, ffn] pre-activations (gate . x, ungated up . x + bias) where the predictor computed them, else
  // null.
  const float* gate = nullptr;
  bool dense = false;  // neuron::FfnRequest::dense
};

struct FfnParameters {
  int64_t hidden = 0;
  int64_t ffn = 0;
  model::Activation activation = model::Activation::kRelu;
  float activation_threshold = 0;
};

FfnParameters MakeFfnParameters(const model::Hyperparameters& hyperparameters);

// Sums over the passes since the last TakeStatistics.
struct LayerStatistics {
  int64_t hot_computed = 0, cold_computed = 0, active = 0;
  LayerStatistics& operator+=(const LayerStatistics& other) {
    hot_computed += other.hot_computed;
    cold_computed += other.cold_computed;
    active += other.active;
    return *this;
  }
};
// How often each neuron fired, [layers][ffn] by the file's numbers.
using FiringCounts = std::vector<std::vector<uint64_t>>;
struct PassStatistics {
  std::vector<LayerStatistics> layers;
  std::vector<absl::Duration> exchange_latencies;
  absl::Duration cpu_worker_wait;
};

// Thread-compatible: one thread drives a device; WriteBeside is another's.
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;

  // ResourceExhausted with the numbers when there is not that much.
  virtual absl::StatusOr<Buffer> Allocate(int64_t bytes, MemoryPurpose purpose) = 0;
  // Has `fill` write `bytes` bytes that become the buffer's contents from `offset` on.
  virtual absl::Status Write(const Buffer& buffer, int64_t offset, int64_t bytes,
                             absl::FunctionRef<void(uint8_t*)> fill) = 0;
  // Has `fill` write the buffer's first `bytes` bytes, beside the passes: on another thread than the one that
  // drives the device, one at a time, and no faster than passes leave room for.
  virtual absl::Status WriteBeside(const Buffer& buffer, int64_t bytes,
                                   absl::FunctionRef<void(uint8_t*)> fill) = 0;
  // Makes the swaps, an array in device memory with at most one for each slot; between passes, and done when
  // it returns. What was recorded of passes stays good.
  virtual absl::Status SwapHot(const HotSwap* swaps, int64_t count) = 0;
  // Threads for preparing weights while loading.
  virtual base::ThreadPool& loader_pool() = 0;
  // Measured bytes a second at which this machine's processors read memory, the pace of cold neurons: of
  // `weights` where those are in that memory.
  virtual double MeasureReadBandwidth(const Buffer& weights) = 0;

  // An error once the device is lost; it does not come back, the process has to end. Cheap.
  virtual absl::Status Health() const = 0;
  // To try out what follows: the open pass fails that way, and a device that is lost stays so.
  virtual void Break(DeviceFault fault) = 0;

  // Bytes that Allocate could still hand out.
  virtual absl::StatusOr<int64_t> AvailableMemory() const = 0;
  // Memory the device keeps for itself beside the buffers it hands out, for passes of at most `max_rows`
  // rows.
  virtual int64_t WorkspaceBytes(const FfnParameters& ffn, int64_t max_rows) const = 0;
  // What a budget of device memory has to pay for beside buffers: context, kernels, graphs and the workspace
  // above.
  virtual int64_t OwnBytes(const FfnParameters& ffn, int64_t max_rows) const { return 0; }
  // Allocations that are not small are rounded up to so many bytes.
  virtual int64_t allocation_unit() const { return 1; }
  // Memory for MemoryPurpose::kEmbedding is the host's: a few rows of it are read in a pass, so that it is
  // not worth a budget of device memory.
  virtual bool embeds_from_host() const { return false; }
  // Sizes of the FFN workspace; once, before the first pass.
  virtual absl::Status Configure(const FfnParameters& ffn, int64_t layers, int64_t max_rows) = 0;
  // The CPU worker's channel for the passes to come; null when every neuron is hot.
  virtual void SetChannel(exchange::Channel* channel, uint64_t placement_epoch) = 0;

  // How many groups of rows the graph may take in turn, so that one is computed while the CPU worker has the
  // other.
  virtual int64_t most_micro_batches() const { return 1; }

  // Between two calls of Configure or SetChannel, passes with as many rows, output rows and scored rows must
  // enqueue the same operators with the same arguments: a device may repeat what it recorded.
  virtual void BeginPass(const PassInput& input) = 0;
  // RopeAndWriteKv and Attention are from now on for these rows of the pass; BeginPass selects all. A device
  // that takes one micro-batch is given no other.
  virtual void SelectRows(RowRange rows) {}
  // Waits for everything enqueued. The first failure of the pass, if any; its results are then void.
  virtual absl::Status EndPass() = 0;
  // Copies to host memory; valid after EndPass returned.
  virtual absl::Status Read(const float* source, int64_t count, float* out) = 0;
  // out[0, count) = what `from` holds at `source`, between the passes of both; a pass that begins afterwards
  // finds it there.
  virtual absl::Status Import(Device& from, const float* source, int64_t count, float* out) = 0;

  // x[r] = scale * token row tokens[r], plus position row (positions[r] + position_offset) where positions
  // are learned.
  virtual void Embed(const Embedding& embedding, float* x) = 0;
  // out[r, :] = norm(x[r, :]); may run in place.
  virtual void Normalize(const Norm& norm, const float* x, int64_t rows, int64_t n, float* out) = 0;
  // y[r, :] = weight . x[r, :] + bias [weight.rows]; bias may be null.
  virtual void MatMul(const kernels::WeightMatrix& weight, const float* bias, const float* x, int64_t rows,
                      float* y) = 0;
  // Several products of the same x; one after another unless a device knows better.
  virtual void MatMuls(absl::Span<const Product> products, const float* x, int64_t rows);
  // Rotates q [rows, heads, head_dim] and k [rows, kv_heads, head_dim] and stores k and v at the rows'
  // positions. A table without pairs rotates nothing.
  virtual void RopeAndWriteKv(const kernels::RopeTable& rope, const kernels::PagedKv& kv, int64_t heads,
                              float* q, float* k, const float* v) = 0;
  // Causal attention of every row over its sequence's cache; out [rows, heads * head_dim].
  virtual void Attention(const kernels::PagedKv& kv, const float* q, int64_t heads, float scale,
                         float* out) = 0;
  // y[r, :] += scale * (x[r, :] + bias [n]); bias may be null.
  virtual void Add(const float* x, const float* bias, float scale, int64_t rows, int64_t n, float* y) = 0;
  // y += term, then out[r, :] = norm(y[r, :]); Add and Normalize unless a device knows better.
  virtual void AddAndNormalize(const Term& term, const Norm& norm, int64_t rows, int64_t n, float* y,
                               float* out);
  // x[i] = max(x[i], 0).
  virtual void Relu(float* x, int64_t count) = 0;
  // out[i, :] = x[output_rows[i], :].
  virtual void GatherOutputRows(const float* x, int64_t n, float* out) = 0;
  // out[i] = log softmax(logits[i, :])[targets[i]], targets in host memory, copied before the call returns.
  virtual void LogProbabilities(const float* logits, int64_t vocabulary, absl::Span<const uint32_t> targets,
                                float* out) = 0;

  // Predictors end in masks [rows, MaskWords(ffn)].
  virtual void MaskAll(int64_t rows, uint64_t* masks) = 0;
  // Bit j: scores[r, j] + bias[j] >= threshold (`strict`: > threshold). bias may be null.
  virtual void MaskFromScores(const float* scores, const float* bias, float threshold, bool strict,
                              int64_t rows, uint64_t* masks) = 0;
  // scores [rows, ffn] from sketched rows of the activated matrix (common/kernels/sketch.h).
  virtual void SketchScores(const uint8_t* sketch, const float* x, int64_t rows, float* scores) = 0;
  // Masks from a process of its own: `fill` runs on the host, outside any graph, and reports failure.
  virtual void MaskFromHost(const float* input, int64_t rows, uint64_t* masks,
                            absl::FunctionRef<absl::Status(const float*, uint64_t*)> fill) = 0;

  // Ships the rows and their cold mask bits to the CPU worker. Nothing happens for a layer that is wholly
  // hot. Other operators may stand between it and HotFfn (a parallel attention): x, masks and gate stay as
  // they are until MergeCold. Of as many micro-batches as the device allows, one may be sent before another's
  // MergeCold, which take the answers in the order of the calls.
  virtual void SendCold(const FfnCall& call, const HotLayer& hot) = 0;
  // y = the hot neurons' part.
  virtual void HotFfn(const FfnCall& call, const HotLayer& hot, float* y) = 0;
  // What `enqueue` enqueues may run beside what is enqueued from then until Join. Neither side may write what
  // the other reads or writes; operators keep their own scratch apart.
  virtual void Fork(absl::FunctionRef<void()> enqueue) { enqueue(); }
  virtual void Join() {}
  // Tells the CPU worker which neurons the next layer that it computes for will probably ask it for: of
  // call.masks [rows, MaskWords(ffn)] those that are not hot. After SendCold and before MergeCold, where
  // looks_ahead(rows).
  virtual bool looks_ahead(int64_t rows) const { return false; }
  virtual void ExpectCold(const FfnCall& call, const HotLayer& hot) {}
  // y += the CPU worker's part. Bounded: a lost worker latches Unavailable.
  virtual void MergeCold(const FfnCall& call, const HotLayer& hot, float* y) = 0;
  // y += term with the CPU worker's part, then out[r, :] = norm(y[r, :]), rows of n values; MergeCold and
  // AddAndNormalize unless a device knows better. term.part is then void.
  virtual void MergeAndNormalize(const FfnCall& call, const HotLayer& hot, const FfnTerm& term,
                                 const Norm& norm, int64_t n, float* y, float* out);

  virtual PassStatistics TakeStatistics() = 0;
  // Firings of the neurons that this device computed since Configure or the last call, between passes. Empty:
  // the device does not count them.
  virtual FiringCounts TakeFirings() { return {}; }
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_DEVICE_DEVICE_H_
