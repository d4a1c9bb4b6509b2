#include "gpu_worker/cuda/cuda_device.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/round_up.h"
#include "common/base/status_macros.h"
#include "common/kernels/sketch.h"
#include "common/neuron/bandwidth.h"
#include "gpu_worker/cuda/limits.h"
#include "gpu_worker/cuda/memory_use.h"
#include "gpu_worker/kernels/attention.h"

namespace isotherm::gpu_worker {
namespace {

constexpr int kLeastMajor = 8;  // compute capability

// Graphs are kept for so many shapes; beyond, they are captured anew.
constexpr size_t kMostGraphs = 128;

// For so much of what a pass of its shape took last the host thread sleeps, which leaves its core to the CPU
// worker; then it spins, as being woken takes longer than a token should wait.
constexpr double kSleepShare = 0.75;
constexpr absl::Duration kOversleep = absl::Microseconds(100);  // what sleeping may take longer than asked

// What a context takes where NVML does not tell, and between what bounds it is believed: it counts what
// others take or give back on this GPU meanwhile, too. Rounded up, so that starts differ in nothing.
constexpr int64_t kUsualContextBytes = int64_t{512} << 20;
constexpr int64_t kLeastContextBytes = int64_t{256} << 20;
constexpr int64_t kMostContextBytes = int64_t{1} << 30;
constexpr int64_t kContextUnit = int64_t{16} << 20;
// Of a device thread. The driver sets it aside for every thread that could run at once, by default 1 KiB and
// 264 MiB of an H200, and takes more only once a kernel needs more.
constexpr size_t kStackBytes = 256;
// What comes after it, generously: kernels as they are first used, graphs, and allocations rounded up to the
// driver's 2 MiB.
constexpr int64_t kLaterBytes = int64_t{144} << 20;

template <typename T>
int64_t Bytes(int64_t count) {
  return count * static_cast<int64_t>(sizeof(T));
}

int64_t SketchInputBytes(const FfnParameters& ffn, int64_t max_rows) {
  return max_rows * kernels::SketchInputBytes(ffn.hidden);
}
int64_t ForkSketchInputBytes(const FfnParameters& ffn) { return SketchInputBytes(ffn, cuda::kSparseRows); }

int64_t PartialFloats(const FfnParameters& ffn) {
  return cuda::DownPartialFloats(ffn.ffn, ffn.hidden, cuda::kSparseRows);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(const CudaDeviceOptions& options) {
  return CudaDevice::Create(options);
}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Create(const CudaDeviceOptions& options) {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found != cudaSuccess || count == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "device cuda needs an NVIDIA GPU and its driver: ",
        found == cudaSuccess ? "none is visible" : cudaGetErrorString(found), ". Use --device=host"));
  }
  if (options.number >= count) {
    return absl::FailedPreconditionError(
        absl::StrCat("device cuda needs GPU ", options.number, "; ", count, " are visible, counted from 0"));
  }
  cudaDeviceProp properties;
  ISOTHERM_RETURN_IF_ERROR(
      cuda::ToStatus(cudaGetDeviceProperties(&properties, options.number), "asking for the device"));
  if (properties.major < kLeastMajor) {
    return absl::FailedPreconditionError(absl::StrCat("device cuda needs compute capability 8.0 or later; ",
                                                      properties.name, " has ", properties.major, ".",
                                                      properties.minor, ". Use --device=host"));
  }
  const std::optional<int64_t> used_before = cuda::UsedDeviceMemory(options.number);
  ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(cudaSetDevice(options.number), "taking the device"));
  ISOTHERM_RETURN_IF_ERROR(
      cuda::ToStatus(cudaDeviceSetLimit(cudaLimitStackSize, kStackBytes), "limiting the stack"));
  ISOTHERM_ASSIGN_OR_RETURN(cuda::Stream stream, cuda::MakeStream());
  ISOTHERM_ASSIGN_OR_RETURN(std::unique_ptr<cuda::Cublas> cublas, cuda::Cublas::Load(stream.get()));
  const std::optional<int64_t> used_after = cuda::UsedDeviceMemory(options.number);
  int64_t context_bytes = kUsualContextBytes;
  if (used_before.has_value() && used_after.has_value()) {
    context_bytes = std::clamp(base::RoundUp(std::max<int64_t>(*used_after - *used_before, 0), kContextUnit),
                               kLeastContextBytes, kMostContextBytes);
  }
  const std::string number = options.number == 0 ? "" : absl::StrCat(":", options.number);
  return std::unique_ptr<CudaDevice>(new CudaDevice(options,
                                                    absl::StrCat("cuda", number, " (", properties.name, ")"),
                                                    context_bytes, std::move(stream), std::move(cublas)));
}

CudaDevice::CudaDevice(const CudaDeviceOptions& options, std::string name, int64_t context_bytes,
                       cuda::Stream stream, std::unique_ptr<cuda::Cublas> cublas)
    : name_(std::move(name)),
      number_(options.number),
      context_bytes_(context_bytes),
      graphs_enabled_(options.graphs),
      stream_rows_(options.stream_rows),
      bus_share_(options.bus_share),
      look_ahead_(options.look_ahead),
      loader_pool_({.threads = options.loader_threads}),
      stream_(std::move(stream)),
      cublas_(std::move(cublas)),
      timer_(options.time_operators ? std::make_unique<cuda::OperatorTimer>() : nullptr) {}

CudaDevice::~CudaDevice() {
  Use();
  if (timer_ != nullptr) timer_->Log();
}

absl::StatusOr<Buffer> CudaDevice::Allocate(int64_t bytes, MemoryPurpose purpose) {
  if (bytes == 0) return Buffer();
  Use();
  if (purpose == MemoryPurpose::kEmbedding) {
    ISOTHERM_ASSIGN_OR_RETURN(cuda::PinnedMemory pinned, cuda::AllocatePinned(bytes));
    auto owner = std::make_shared<cuda::PinnedMemory>(std::move(pinned));
    auto* const data = static_cast<uint8_t*>(owner->get());
    return Buffer(data, bytes, std::move(owner));
  }
  absl::StatusOr<cuda::DeviceMemory> memory = cuda::AllocateDevice(bytes);
  if (!memory.ok()) {
    return absl::Status(memory.status().code(),
                        absl::StrCat(MemoryPurposeName(purpose), ": ", memory.status().message()));
  }
  auto owner = std::make_shared<cuda::DeviceMemory>(*std::move(memory));
  auto* const data = static_cast<uint8_t*>(owner->get());
  return Buffer(data, bytes, std::move(owner));
}

absl::StatusOr<uint8_t*> CudaDevice::Staging(int64_t bytes) {
  if (bytes > staging_bytes_) {
    staging_ = cuda::PinnedMemory();
    staging_bytes_ = 0;
    ISOTHERM_ASSIGN_OR_RETURN(staging_, cuda::AllocatePinned(bytes));
    staging_bytes_ = bytes;
  }
  return static_cast<uint8_t*>(staging_.get());
}

absl::Status CudaDevice::Write(const Buffer& buffer, int64_t offset, int64_t bytes,
                               absl::FunctionRef<void(uint8_t*)> fill) {
  if (offset < 0 || bytes < 0 || offset + bytes > buffer.bytes()) {
    return absl::InternalError(absl::StrCat("write of ", bytes, " bytes at ", offset, " into a buffer of ",
                                            buffer.bytes(), " bytes"));
  }
  Use();
  cudaPointerAttributes attributes;
  ISOTHERM_RETURN_IF_ERROR(
      cuda::ToStatus(cudaPointerGetAttributes(&attributes, buffer.data()), "looking for a buffer"));
  if (attributes.type == cudaMemoryTypeHost) {
    fill(buffer.data() + offset);
    return absl::OkStatus();
  }
  ISOTHERM_ASSIGN_OR_RETURN(uint8_t* const staging, Staging(bytes));
  fill(staging);
  ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(
      cudaMemcpyAsync(buffer.data() + offset, staging, bytes, cudaMemcpyHostToDevice, stream()),
      "uploading weights"));
  return Wait("uploading weights");
}

double CudaDevice::MeasureReadBandwidth(const Buffer& /*weights*/) {
  // Larger than the last-level caches of most servers.
  constexpr int64_t kBytes = int64_t{256} << 20;
  const auto memory = std::make_unique<uint8_t[]>(kBytes);
  std::memset(memory.get(), 1, kBytes);
  return neuron::MeasureReadBandwidth(loader_pool_, memory.get(), kBytes, absl::Milliseconds(200));
}

// Errors that end the context stay: every later call returns them.
absl::Status CudaDevice::Health() const {
  Use();
  const cudaError_t error = cudaStreamQuery(stream());
  return error == cudaErrorNotReady ? absl::OkStatus() : cuda::ToStatus(error, "running what was enqueued");
}

absl::StatusOr<int64_t> CudaDevice::AvailableMemory() const {
  Use();
  size_t free = 0, total = 0;
  ISOTHERM_RETURN_IF_ERROR(cuda::ToStatus(cudaMemGetInfo(&free, &total), "asking for the free memory"));
  return static_cast<int64_t>(free);
}

int64_t CudaDevice::WorkspaceBytes(const FfnParameters& ffn, int64_t max_rows) const {
  return Bytes<float>(2 * cuda::kSparseRows * ffn.ffn) + Bytes<float>(PartialFloats(ffn)) +
         Bytes<float>(max_rows * ffn.hidden) + SketchInputBytes(ffn, max_rows) + ForkSketchInputBytes(ffn) +
         cuda::kArenaBytes + cuda::ColdStream::kStagingBytes + cuda::PassTables::Bytes(max_rows);
}

int64_t CudaDevice::OwnBytes(const FfnParameters& ffn, int64_t max_rows) const {
  return context_bytes_ + kLaterBytes + WorkspaceBytes(ffn, max_rows);
}

absl::Status CudaDevice::Configure(const FfnParameters& ffn, int64_t layers, int64_t max_rows) {
  Use();
  ffn_ = ffn;
  statistics_.layers.resize(layers);
  ISOTHERM_RETURN_IF_ERROR(tables_.Allocate(max_rows));
  const int64_t counters = Bytes<cuda::FfnCounters>(2 * layers);
  ISOTHERM_ASSIGN_OR_RETURN(values_, cuda::AllocateDevice(Bytes<float>(2 * cuda::kSparseRows * ffn.ffn)));
  ISOTHERM_ASSIGN_OR_RETURN(partials_, cuda::AllocateDevice(Bytes<float>(PartialFloats(ffn))));
  fork_sketch_inputs_ = SketchInputBytes(ffn, max_rows);
  ISOTHERM_ASSIGN_OR_RETURN(sketch_inputs_,
                            cuda::AllocateDevice(fork_sketch_inputs_ + ForkSketchInputBytes(ffn)));
  ISOTHERM_ASSIGN_OR_RETURN(side_stream_, cuda::MakeStream());
  ISOTHERM_ASSIGN_OR_RETURN(fork_, cuda::MakeEvent());
  ISOTHERM_ASSIGN_OR_RETURN(join_, cuda::MakeEvent());
  ISOTHERM_ASSIGN_OR_RETURN(cold_answer_, cuda::AllocateDevice(Bytes<float>(max_rows * ffn.hidden)));
  ISOTHERM_ASSIGN_OR_RETURN(cold_staging_, cuda::AllocateDevice(cuda::ColdStream::kStagingBytes));
  ISOTHERM_ASSIGN_OR_RETURN(arena_, cuda::AllocateDevice(cuda::kArenaBytes));
  ISOTHERM_ASSIGN_OR_RETURN(counters_, cuda::AllocateDevice(counters));
  ISOTHERM_ASSIGN_OR_RETURN(host_counters_, cuda::AllocatePinned(counters));
  ISOTHERM_ASSIGN_OR_RETURN(firings_, cuda::AllocateDevice(Bytes<unsigned>(layers * ffn.ffn)));
  return cuda::ToStatus(cudaMemsetAsync(firings_.get(), 0, Bytes<unsigned>(layers * ffn.ffn), stream()),
                        "clearing the firing counts");
}

void CudaDevice::SetChannel(exchange::Channel* channel, uint64_t placement_epoch) {
  placement_epoch_ = placement_epoch;
  if (channel == channel_) return;
  Use();
  graphs_fit_ = true;
  graphs_.clear();  // the old channel's memory is in them
  direct_.reset();
  cold_stream_.reset();
  attached_ = absl::OkStatus();
  channel_ = channel;
  if (channel == nullptr) return;
  auto direct = cuda::DirectExchange::Attach(*channel, static_cast<int64_t>(statistics_.layers.size()));
  attached_ = direct.status();
  if (direct.ok()) direct_ = *std::move(direct);
  AttachColdStream();
}

// Without it prefill is slower, and right.
void CudaDevice::AttachColdStream() {
  if (channel_->bundles() == nullptr || (stream_rows_ == 0 && bus_share_ == 0.0)) return;
  auto stream = cuda::ColdStream::Attach(*channel_->bundles(), layers(), ffn_.ffn, cold_staging_.get());
  if (!stream.ok()) {
    spdlog::info("cold neurons cannot be brought to the GPU: {}", std::string(stream.status().message()));
    return;
  }
  cold_stream_ = *std::move(stream);
}

void CudaDevice::BeginPass(const PassInput& input) {
  Use();
  step_ = input.step;
  longest_ = 1 + *std::max_element(input.positions.begin(), input.positions.end());
  rows_ = input.rows();
  one_sequence_ = std::count(input.table_offsets.begin(), input.table_offsets.end(),
                             input.table_offsets.front()) == rows_;
  streaming_ =
      cold_stream_ != nullptr && stream_rows_ > 0 && rows_ > cuda::kSparseRows && rows_ >= stream_rows_;
  failure_ = attached_;
  mode_ = Mode::kEager;
  exchange_pending_ = false;
  timed_ = false;
  if (channel_ != nullptr && !streaming_) channel_->BeginStep(input.step);
  bool moved = false;
  Latch(tables_.Upload(input, stream(), moved));
  if (moved) graphs_.clear();
  Enqueue("clearing the counters", [&] {
    return cudaMemsetAsync(counters_.get(), 0, Bytes<cuda::FfnCounters>(2 * layers()), stream());
  });
  if (direct_ != nullptr) Latch(direct_->BeginPass(step_, placement_epoch_, stream()));
  const bool decode = rows_ <= cuda::kSparseRows && input.scored_rows == 0;
  if (graphs_enabled_ && graphs_fit_ && decode && failure_.ok()) {
    BeginGraph({rows_, static_cast<int64_t>(input.output_rows.size()), ContextPieces()});
  }
}

int64_t CudaDevice::ContextPieces() const {
  const auto pieces = static_cast<uint64_t>((longest_ + cuda::kSplitTokens - 1) / cuda::kSplitTokens);
  return static_cast<int64_t>(std::bit_ceil(pieces));
}

absl::Status CudaDevice::EndPass() {
  CapturedPass* const replayed = mode_ == Mode::kReplay ? &graphs_[shape_] : nullptr;
  const absl::Time launched = absl::Now();
  if (const absl::Status ended = EndGraph(); !ended.ok()) Latch(ended);
  Enqueue("reading the counters", [&] {
    return cudaMemcpyAsync(host_counters_.get(), counters_.get(), Bytes<cuda::FfnCounters>(2 * layers()),
                           cudaMemcpyDeviceToHost, stream());
  });
  // Also after a failure: nothing of the pass may still run when the next one writes its tables, and the
  // exchanges it made have happened.
  if (direct_ != nullptr) Latch(direct_->EndPass(stream()));
  if (replayed != nullptr) absl::SleepFor(kSleepShare * replayed->time - kOversleep);
  const absl::Status idle = Wait("running a pass");
  Latch(idle);
  if (replayed != nullptr) replayed->time = absl::Now() - launched;
  if (direct_ != nullptr && idle.ok()) Latch(direct_->Finish(rows_, statistics_));
  if (timed_ && failure_.ok()) Latch(CollectTimes());
  if (channel_ != nullptr && !streaming_) channel_->EndStep();
  if (!failure_.ok()) return failure_;
  const auto* const hot = static_cast<const cuda::FfnCounters*>(host_counters_.get());
  const auto* const cold = hot + layers();
  for (int64_t l = 0; l < layers(); ++l) {
    statistics_.layers[l].hot_computed += static_cast<int64_t>(hot[l].computed);
    statistics_.layers[l].cold_computed += static_cast<int64_t>(cold[l].computed);
    statistics_.layers[l].active += static_cast<int64_t>(hot[l].active + cold[l].active);
  }
  return absl::OkStatus();
}

absl::Status CudaDevice::CollectTimes() {
  if (direct_ != nullptr) {
    for (const absl::Duration overhead : direct_->Overheads()) {
      timer_->Add("exchange overhead", absl::ToDoubleMicroseconds(overhead));
    }
  }
  return timer_->Collect(graphs_[shape_].track);
}

absl::Status CudaDevice::Wait(const char* doing) {
  return cuda::ToStatus(cudaStreamSynchronize(stream()), doing);
}

absl::Status CudaDevice::Read(const float* source, int64_t count, float* out) {
  Use();
  ISOTHERM_ASSIGN_OR_RETURN(uint8_t* const staging, Staging(Bytes<float>(count)));
  ISOTHERM_RETURN_IF_ERROR(
      cuda::ToStatus(cudaMemcpyAsync(staging, source, Bytes<float>(count), cudaMemcpyDeviceToHost, stream()),
                     "reading results"));
  ISOTHERM_RETURN_IF_ERROR(Wait("reading results"));
  std::memcpy(out, staging, Bytes<float>(count));
  return absl::OkStatus();
}

absl::Status CudaDevice::Import(Device& from, const float* source, int64_t count, float* out) {
  // What another GPU holds is at an address of its own, as is the host's memory.
  Use();
  AllowPeer(source);
  return cuda::ToStatus(cudaMemcpyAsync(out, source, Bytes<float>(count), cudaMemcpyDefault, stream()),
                        "taking over from another device");
}

// A copy from another GPU goes through the host until this GPU may read there, where it can.
void CudaDevice::AllowPeer(const void* memory) {
  cudaPointerAttributes attributes;
  if (cudaPointerGetAttributes(&attributes, memory) == cudaSuccess &&
      attributes.type == cudaMemoryTypeDevice && attributes.device != number_ &&
      peers_.insert(attributes.device).second) {
    // Already allowed, or not to be had: the copy works in any case.
    static_cast<void>(cudaDeviceEnablePeerAccess(attributes.device, 0));
  }
  // An error must not be seen by others.
  static_cast<void>(cudaGetLastError());
}

PassStatistics CudaDevice::TakeStatistics() {
  PassStatistics taken = std::move(statistics_);
  statistics_ = PassStatistics();
  statistics_.layers.resize(taken.layers.size());
  return taken;
}

FiringCounts CudaDevice::TakeFirings() {
  Use();
  std::vector<unsigned> counts(statistics_.layers.size() * ffn_.ffn);
  const int64_t bytes = Bytes<unsigned>(static_cast<int64_t>(counts.size()));
  cudaError_t error = cudaMemcpyAsync(counts.data(), firings_.get(), bytes, cudaMemcpyDeviceToHost, stream());
  if (error == cudaSuccess) error = cudaMemsetAsync(firings_.get(), 0, bytes, stream());
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream());
  // The pass that broke the device tells why.
  if (error != cudaSuccess) std::fill(counts.begin(), counts.end(), 0);
  FiringCounts taken;
  for (auto layer = counts.begin(); layer != counts.end(); layer += ffn_.ffn) {
    taken.emplace_back(layer, layer + ffn_.ffn);
  }
  return taken;
}

void CudaDevice::Fork(absl::FunctionRef<void()> enqueue) {
  if (mode_ == Mode::kReplay || !failure_.ok()) return;
  const auto check = [&](cudaError_t error) { Latch(cuda::ToStatus(error, "forking a pass")); };
  check(cudaEventRecord(fork_.get(), stream_.get()));
  check(cudaStreamWaitEvent(side_stream_.get(), fork_.get(), 0));
  forked_ = true;
  enqueue();
  forked_ = false;
  check(cudaEventRecord(join_.get(), side_stream_.get()));
}

void CudaDevice::Join() {
  Enqueue("joining a fork", [&] { return cudaStreamWaitEvent(stream(), join_.get(), 0); });
}

void CudaDevice::BeginGraph(const Shape& shape) {
  shape_ = shape;
  if (graphs_.contains(shape)) {
    mode_ = Mode::kReplay;
    return;
  }
  if (graphs_.size() >= kMostGraphs) graphs_.clear();
  Latch(
      cuda::ToStatus(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "capturing a pass"));
  if (!failure_.ok()) return;
  mode_ = Mode::kCapture;
  track_ = {};
  if (timer_ != nullptr) MarkTime("");
}

void CudaDevice::MarkTime(std::string operation) {
  Latch(timer_->Mark(std::move(operation), stream(), track_));
}

absl::StatusOr<cuda::GraphExec> CudaDevice::FinishCapture() {
  mode_ = Mode::kEager;
  cudaGraph_t captured = nullptr;
  const absl::Status status = cuda::ToStatus(cudaStreamEndCapture(stream(), &captured), "capturing a pass");
  const cuda::Graph graph(captured);
  ISOTHERM_RETURN_IF_ERROR(status);
  ISOTHERM_RETURN_IF_ERROR(failure_);
  cudaGraphExec_t executable = nullptr;
  ISOTHERM_RETURN_IF_ERROR(
      cuda::ToStatus(cudaGraphInstantiate(&executable, graph.get(), 0), "instantiating a graph"));
  return cuda::GraphExec(executable);
}

void CudaDevice::LeaveGraph() {
  if (mode_ != Mode::kCapture) return;
  graphs_fit_ = false;
  absl::StatusOr<cuda::GraphExec> graph = FinishCapture();
  if (!graph.ok()) return Latch(graph.status());
  Latch(cuda::ToStatus(cudaGraphLaunch(graph->get(), stream()), "launching part of a pass"));
  // The graph must outlive its run.
  Latch(Wait("running part of a pass"));
}

absl::Status CudaDevice::EndGraph() {
  if (mode_ == Mode::kEager) return absl::OkStatus();
  if (mode_ == Mode::kCapture) {
    ISOTHERM_ASSIGN_OR_RETURN(cuda::GraphExec graph, FinishCapture());
    graphs_[shape_] = {std::move(graph), std::move(track_)};
  }
  mode_ = Mode::kEager;
  timed_ = timer_ != nullptr;
  return cuda::ToStatus(cudaGraphLaunch(graphs_[shape_].graph.get(), stream()), "launching a pass");
}

}  // namespace isotherm::gpu_worker
