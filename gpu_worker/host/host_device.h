#ifndef ISOTHERM_GPU_WORKER_HOST_HOST_DEVICE_H_
#define ISOTHERM_GPU_WORKER_HOST_HOST_DEVICE_H_

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "common/base/thread_pool.h"
#include "common/exchange/descriptor.h"
#include "common/neuron/ffn.h"
#include "gpu_worker/device/device.h"

namespace isotherm::gpu_worker {

struct HostDeviceOptions {
  int threads = 1;
  int spin_us = 0;
  // Tell the CPU worker a layer early what it will probably be asked for: of use where the two do not share a
  // memory bus.
  bool look_ahead = false;
};

// Device `host`: every operator runs at once on the CPU kernels. The reference for the CUDA device, and what
// serves on machines without a GPU. One operator a file in this folder, under the name its CUDA twin has.
class HostDevice : public Device {
 public:
  explicit HostDevice(const HostDeviceOptions& options);
  ~HostDevice() override;

  std::string name() const override { return "host"; }
  absl::StatusOr<Buffer> Allocate(int64_t bytes, MemoryPurpose purpose) override;
  absl::Status Write(const Buffer& buffer, int64_t offset, int64_t bytes,
                     absl::FunctionRef<void(uint8_t*)> fill) override;
  absl::Status WriteBeside(const Buffer& buffer, int64_t bytes,
                           absl::FunctionRef<void(uint8_t*)> fill) override;
  absl::Status SwapHot(const HotSwap* swaps, int64_t count) override;
  base::ThreadPool& loader_pool() override { return pool_; }
  double MeasureReadBandwidth(const Buffer& weights) override;
  absl::Status Health() const override { return health_; }
  void Break(DeviceFault fault) override;
  absl::StatusOr<int64_t> AvailableMemory() const override;
  int64_t WorkspaceBytes(const FfnParameters& ffn, int64_t max_rows) const override;
  int64_t OwnBytes(const FfnParameters& ffn, int64_t max_rows) const override {
    return WorkspaceBytes(ffn, max_rows);
  }
  absl::Status Configure(const FfnParameters& ffn, int64_t layers, int64_t max_rows) override;
  void SetChannel(exchange::Channel* channel, uint64_t placement_epoch) override;

  // As many as a channel has in flight.
  int64_t most_micro_batches() const override { return exchange::kSlots; }
  void BeginPass(const PassInput& input) override;
  void SelectRows(RowRange rows) override { rows_ = rows; }
  absl::Status EndPass() override;
  absl::Status Read(const float* source, int64_t count, float* out) override;
  absl::Status Import(Device& from, const float* source, int64_t count, float* out) override;

  void Embed(const Embedding& embedding, float* x) override;
  void Normalize(const Norm& norm, const float* x, int64_t rows, int64_t n, float* out) override;
  void MatMul(const kernels::WeightMatrix& weight, const float* bias, const float* x, int64_t rows,
              float* y) override;
  void RopeAndWriteKv(const kernels::RopeTable& rope, const kernels::PagedKv& kv, int64_t heads, float* q,
                      float* k, const float* v) override;
  void Attention(const kernels::PagedKv& kv, const float* q, int64_t heads, float scale, float* out) override;
  void Add(const float* x, const float* bias, float scale, int64_t rows, int64_t n, float* y) override;
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
  void ExpectCold(const FfnCall& call, const HotLayer& hot) override;
  void MergeCold(const FfnCall& call, const HotLayer& hot, float* y) override;
  PassStatistics TakeStatistics() override;
  FiringCounts TakeFirings() override;

 private:
  // Of a row of those selected.
  int32_t Position(int64_t row) const { return pass_.positions[rows_.begin + row]; }
  const uint32_t* BlockTable(int64_t row) const {
    return pass_.block_tables.data() + pass_.table_offsets[rows_.begin + row];
  }
  void Latch(const absl::Status& status) {
    if (failure_.ok()) failure_ = status;
  }

  base::ThreadPool pool_;
  const bool look_ahead_;
  FfnParameters ffn_;
  std::unique_ptr<neuron::FfnExecutor> executor_;
  exchange::Channel* channel_ = nullptr;
  uint64_t placement_epoch_ = 0;

  PassInput pass_;
  RowRange rows_;  // of the pass, as selected
  absl::Status failure_;
  absl::Status health_;
  int64_t exchanges_pending_ = 0;
  PassStatistics statistics_;
  FiringCounts firings_;

  // Scratch, sized by Configure or grown in BeginPass; operators do not allocate.
  std::vector<uint64_t> hot_masks_;
  std::vector<float> gate_values_;
  std::vector<float> position_;  // [hidden], one row of the position embedding
  std::vector<uint8_t> sketch_inputs_;
  std::vector<std::vector<float>> attention_scratch_;  // one a pool member
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_HOST_HOST_DEVICE_H_
