#ifndef ISOTHERM_GPU_WORKER_CUDA_CUDA_DEVICE_H_
#define ISOTHERM_GPU_WORKER_CUDA_CUDA_DEVICE_H_

#include <compare>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/base/thread_pool.h"
#include "gpu_worker/cuda/cold_stream.h"
#include "gpu_worker/cuda/cublas.h"
#include "gpu_worker/cuda/direct_exchange.h"
#include "gpu_worker/cuda/make_cuda_device.h"
#include "gpu_worker/cuda/operator_timer.h"
#include "gpu_worker/cuda/pass_tables.h"
#include "gpu_worker/cuda/runtime.h"
#include "gpu_worker/device/device.h"
#include "gpu_worker/kernels/sparse_ffn.h"

namespace isotherm::gpu_worker {

// Device `cuda`: operators are enqueued on one stream. A decode pass is captured as a CUDA graph the first
// time its shape occurs and replayed afterwards; operators then do nothing, as all that differs between two
// passes of a shape lies in PassTables. One operator a file in this folder, under the name its twin has in
// gpu_worker/host.
class CudaDevice final : public Device {
 public:
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Create(const CudaDeviceOptions& options);
  ~CudaDevice() override;

  std::string name() const override { return name_; }
  absl::StatusOr<Buffer> Allocate(int64_t bytes, MemoryPurpose purpose) override;
  absl::Status Write(const Buffer& buffer, int64_t offset, int64_t bytes,
                     absl::FunctionRef<void(uint8_t*)> fill) override;
  absl::Status WriteBeside(const Buffer& buffer, int64_t bytes,
                           absl::FunctionRef<void(uint8_t*)> fill) override;
  absl::Status SwapHot(const HotSwap* swaps, int64_t count) override;
  base::ThreadPool& loader_pool() override { return loader_pool_; }
  double MeasureReadBandwidth(const Buffer& weights) override;
  absl::Status Health() const override;
  void Break(DeviceFault fault) override;
  absl::StatusOr<int64_t> AvailableMemory() const override;
  int64_t WorkspaceBytes(const FfnParameters& ffn, int64_t max_rows) const override;
  int64_t OwnBytes(const FfnParameters& ffn, int64_t max_rows) const override;
  int64_t allocation_unit() const override { return int64_t{2} << 20; }
  bool embeds_from_host() const override { return true; }
  absl::Status Configure(const FfnParameters& ffn, int64_t layers, int64_t max_rows) override;
  void SetChannel(exchange::Channel* channel, uint64_t placement_epoch) override;

  void BeginPass(const PassInput& input) override;
  absl::Status EndPass() override;
  absl::Status Read(const float* source, int64_t count, float* out) override;
  absl::Status Import(Device& from, const float* source, int64_t count, float* out) override;

  void Embed(const Embedding& embedding, float* x) override;
  void Normalize(const Norm& norm, const float* x, int64_t rows, int64_t n, float* out) override;
  void MatMul(const kernels::WeightMatrix& weight, const float* bias, const float* x, int64_t rows,
              float* y) override;
  void MatMuls(absl::Span<const Product> products, const float* x, int64_t rows) override;
  void RopeAndWriteKv(const kernels::RopeTable& rope, const kernels::PagedKv& kv, int64_t heads, float* q,
                      float* k, const float* v) override;
  void Attention(const kernels::PagedKv& kv, const float* q, int64_t heads, float scale, float* out) override;
  void Add(const float* x, const float* bias, float scale, int64_t rows, int64_t n, float* y) override;
  void AddAndNormalize(const Term& term, const Norm& norm, int64_t rows, int64_t n, float* y,
                       float* out) override;
  void Relu(float* x, int64_t count) override;
  void GatherOutputRows(const float* x, int64_t n, float* out) override;
  void LogProbabilities(const float* logits, int64_t vocabulary, absl::Span<const uint32_t> targets,
                        float* out) override;
  void MaskAll(int64_t rows, uint64_t* masks) override;
  void MaskFromScores(const float* scores, const float* bias, float threshold, bool strict, int64_t rows,
                      uint64_t* masks) override;
  void SketchScores(const uint8_t* sketch, const float* x, int64_t rows, float* scores) override;
  void MaskFromHost(const float* input, int64_t rows, uint64_t* masks,
                    absl::FunctionRef<absl::Status(const float*, uint64_t*)> fill) override;
  void SendCold(const FfnCall& call, const HotLayer& hot) override;
  void HotFfn(const FfnCall& call, const HotLayer& hot, float* y) override;
  bool looks_ahead(int64_t rows) const override;
  void Fork(absl::FunctionRef<void()> enqueue) override;
  void Join() override;
  void ExpectCold(const FfnCall& call, const HotLayer& hot) override;
  void MergeCold(const FfnCall& call, const HotLayer& hot, float* y) override;
  void MergeAndNormalize(const FfnCall& call, const HotLayer& hot, const FfnTerm& term, const Norm& norm,
                         int64_t n, float* y, float* out) override;
  PassStatistics TakeStatistics() override;
  FiringCounts TakeFirings() override;

 private:
  // What the sequence of launches of a pass depends on.
  struct Shape {
    int64_t rows = 0;
    int64_t output_rows = 0;
    int64_t context_pieces = 0;  // longest context in attention's pieces, rounded up to a power of two
    auto operator<=>(const Shape&) const = default;
  };
  enum class Mode { kEager, kCapture, kReplay };

  CudaDevice(const CudaDeviceOptions& options, std::string name, int64_t context_bytes, cuda::Stream stream,
             std::unique_ptr<cuda::Cublas> cublas);

  // Makes this device the one that the calling thread's CUDA calls are about; whatever can be called outside
  // a pass begins with it.
  void Use() const { static_cast<void>(cudaSetDevice(number_)); }
  void AllowPeer(const void* memory);
  cudaStream_t stream() const { return forked_ ? side_stream_.get() : stream_.get(); }
  cuda::FfnCounters* HotCounters(int64_t layer) const {
    return static_cast<cuda::FfnCounters*>(counters_.get()) + layer;
  }
  cuda::FfnCounters* ColdCounters(int64_t layer) const { return HotCounters(layers() + layer); }
  int64_t layers() const { return static_cast<int64_t>(statistics_.layers.size()); }
  unsigned* LayerFirings(int64_t layer) const {
    return static_cast<unsigned*>(firings_.get()) + layer * ffn_.ffn;
  }
  void Latch(const absl::Status& status) {
    if (failure_.ok()) failure_ = status;
  }
  // Runs launch() -> cudaError_t unless the pass has failed or a graph stands for it.
  template <typename Launch>
  void Enqueue(const char* what, const Launch& launch) {
    Enqueue(
        what, [] { return std::string(); }, launch);
  }
  // detail() -> std::string tells such launches apart where operators are timed.
  template <typename Detail, typename Launch>
  void Enqueue(const char* what, const Detail& detail, const Launch& launch) {
    if (mode_ == Mode::kReplay || !failure_.ok()) return;
    Latch(cuda::ToStatus(launch(), what));
    if (timer_ != nullptr && mode_ == Mode::kCapture && !forked_) MarkTime(what + detail());
  }
  void AttachColdStream();
  // While a pass is captured: the operation ends here.
  void MarkTime(std::string operation);
  absl::Status Wait(const char* doing);
  int64_t ContextPieces() const;

  // Starts capturing, or finds that the shape has a graph.
  void BeginGraph(const Shape& shape);
  absl::StatusOr<cuda::GraphExec> FinishCapture();
  // Runs what was captured so far and goes on without a graph: for operators that need the host.
  void LeaveGraph();
  absl::Status EndGraph();
  // Of the graph that has just run.
  absl::Status CollectTimes();

  // y[b, r] = weight . x on tensor cores, tile by tile of the weights.
  absl::Status DenseProduct(const kernels::WeightMatrix& weight, const float* x, int64_t rows, float* y);
  // The same for as many rows as RowsAtOnce allows.
  absl::Status DenseProductOfRows(const kernels::WeightMatrix& weight, const float* x, int64_t rows,
                                  float* y);
  // Whether as many rows go through the kernels that read each weight once.
  bool SparseKernelsFit(int64_t rows) const;
  // The cold neurons of the call's layer that are computed here, where they lie in host memory; or none.
  cuda::NeuronSet BusNeurons(const FfnCall& call, const HotLayer& hot) const;
  cuda::ExchangeCall MakeExchange(const FfnCall& call, const HotLayer& hot) const;
  void SparseFfn(const FfnCall& call, const HotLayer& hot, const cuda::NeuronSet& bus, float* y);
  // Some of a layer's neurons, and where to count them.
  struct FfnPart {
    const neuron::BundleLayout& layout;
    cuda::NeuronSet neurons;
    cuda::FfnCounters* counters;
    bool accumulate = false;  // to what the other parts have given
  };
  // y (+)= what the neurons add, dense and masked, on tensor cores.
  absl::Status DenseFfn(const FfnCall& call, const FfnPart& part, float* y);
  // The same for as many rows as RowsAtOnce allows.
  absl::Status DenseFfnOfRows(const FfnCall& call, const FfnPart& part, float* y);
  // y += what the cold neurons add, brought over from the CPU worker's memory.
  absl::Status StreamColdFfn(const FfnCall& call, const HotLayer& hot, float* y);
  // Fetches what the exchange wants and sends it from here.
  absl::Status SendColdThroughHost(const FfnCall& call, const HotLayer& hot);
  // Grows the staging memory to so many bytes.
  absl::StatusOr<uint8_t*> Staging(int64_t bytes);

  const std::string name_;
  const int number_;
  const int64_t context_bytes_;  // context and cuBLAS
  const bool graphs_enabled_;
  const int64_t stream_rows_;
  const std::optional<double> bus_share_;  // of the cold neurons, computed here
  const bool look_ahead_;
  base::ThreadPool loader_pool_;
  cuda::Stream stream_, side_stream_;
  cuda::Event fork_, join_;
  bool forked_ = false;  // operators are enqueued on the side stream
  std::unique_ptr<cuda::Cublas> cublas_;
  std::set<int> peers_;  // GPUs whose memory this one was allowed to read, if it can

  FfnParameters ffn_;
  exchange::Channel* channel_ = nullptr;
  uint64_t placement_epoch_ = 0;
  std::unique_ptr<cuda::DirectExchange> direct_;   // null: exchanges go through the host
  absl::Status attached_;                          // why they cannot go at all
  std::unique_ptr<cuda::ColdStream> cold_stream_;  // null: the CPU worker computes all cold neurons

  uint64_t step_ = 0;
  int64_t rows_ = 0;
  int64_t longest_ = 0;  // context of any row
  bool one_sequence_ = false;
  bool streaming_ = false;  // cold neurons come here
  Shape shape_;
  Mode mode_ = Mode::kEager;
  // A predictor on the host, or an exchange through it, leaves every pass anyway: capturing is then in vain.
  bool graphs_fit_ = true;
  absl::Status failure_;
  bool exchange_pending_ = false;
  bool timed_ = false;  // the pass is a graph whose operators are timed
  PassStatistics statistics_;
  struct CapturedPass {
    cuda::GraphExec graph;
    cuda::OperatorTimer::Track track;
    absl::Duration time = {};  // of its last run
  };
  std::map<Shape, CapturedPass> graphs_;
  std::unique_ptr<cuda::OperatorTimer> timer_;  // null: operators are not timed
  cuda::OperatorTimer::Track track_;            // of the pass being captured

  cuda::PassTables tables_;
  cuda::DeviceMemory values_;         // F32 [2, kSparseRows, ffn], of the sparse FFN
  cuda::DeviceMemory partials_;       // its split sums
  cuda::DeviceMemory sketch_inputs_;  // [max_rows, SketchInputBytes], then as much for rows of a fork
  int64_t fork_sketch_inputs_ = 0;    // where the latter begin
  cuda::DeviceMemory arena_;          // scratch of one operator: tiles of weights, split attention
  cuda::DeviceMemory cold_staging_;   // of cold_stream_
  cuda::DeviceMemory cold_answer_;    // F32 [max_rows, hidden]
  cuda::DeviceMemory counters_;       // FfnCounters [2, layers]: hot, cold computed here
  cuda::PinnedMemory host_counters_;
  cuda::DeviceMemory firings_;  // unsigned [layers, ffn]
  // For Write and for what passes through the host; grows.
  cuda::PinnedMemory staging_;
  int64_t staging_bytes_ = 0;
  // WriteBeside's own; made when first used.
  cuda::Stream beside_stream_;
  cuda::PinnedMemory beside_staging_;
  int64_t beside_bytes_ = 0;
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_CUDA_CUDA_DEVICE_H_
