#include "gpu_worker/host/host_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/host.h"
#include "common/kernels/sketch.h"
#include "common/neuron/bandwidth.h"
#include "common/neuron/mask.h"

namespace isotherm::gpu_worker {

HostDevice::HostDevice(const HostDeviceOptions& options)
    : pool_({.threads = options.threads, .spin_us = options.spin_us}),
      look_ahead_(options.look_ahead),
      attention_scratch_(options.threads) {}

HostDevice::~HostDevice() = default;

absl::StatusOr<Buffer> HostDevice::Allocate(int64_t bytes, MemoryPurpose purpose) {
  if (bytes == 0) return Buffer();
  // Whole pages straight from the kernel: large weights then use huge pages and return to the system when
  // freed.
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes for ",
                                                     MemoryPurposeName(purpose), ": ", std::strerror(errno)));
  }
  madvise(memory, bytes, MADV_HUGEPAGE);
  std::shared_ptr<void> owner(memory, [bytes](void* p) { munmap(p, bytes); });
  return Buffer(static_cast<uint8_t*>(memory), bytes, std::move(owner));
}

absl::Status HostDevice::Write(const Buffer& buffer, int64_t offset, int64_t bytes,
                               absl::FunctionRef<void(uint8_t*)> fill) {
  if (offset < 0 || bytes < 0 || offset + bytes > buffer.bytes()) {
    return absl::InternalError(absl::StrCat("write of ", bytes, " bytes at ", offset, " into a buffer of ",
                                            buffer.bytes(), " bytes"));
  }
  fill(buffer.data() + offset);
  return absl::OkStatus();
}

double HostDevice::MeasureReadBandwidth(const Buffer& weights) {
  return neuron::MeasureReadBandwidth(pool_, weights.data(), weights.bytes(), absl::Milliseconds(10));
}

int64_t HostDevice::WorkspaceBytes(const FfnParameters& ffn, int64_t max_rows) const {
  const int64_t row = neuron::MaskWords(ffn.ffn) * 8 + ffn.ffn * static_cast<int64_t>(sizeof(float)) +
                      kernels::SketchInputBytes(ffn.hidden);
  return neuron::FfnExecutor::WorkspaceBytes(pool_.threads(), ffn.hidden, ffn.ffn, max_rows) + max_rows * row;
}

absl::StatusOr<int64_t> HostDevice::AvailableMemory() const { return base::AvailableMemory(); }

absl::Status HostDevice::Configure(const FfnParameters& ffn, int64_t layers, int64_t max_rows) {
  ffn_ = ffn;
  executor_ = std::make_unique<neuron::FfnExecutor>(&pool_, ffn.hidden, ffn.ffn, max_rows);
  hot_masks_.resize(max_rows * neuron::MaskWords(ffn.ffn));
  gate_values_.resize(max_rows * ffn.ffn);
  position_.resize(ffn.hidden);
  sketch_inputs_.resize(max_rows * kernels::SketchInputBytes(ffn.hidden) + 64);
  statistics_.layers.resize(layers);
  firings_.assign(layers, std::vector<uint64_t>(ffn.ffn));
  return absl::OkStatus();
}

void HostDevice::SetChannel(exchange::Channel* channel, uint64_t placement_epoch) {
  channel_ = channel;
  placement_epoch_ = placement_epoch;
}

void HostDevice::BeginPass(const PassInput& input) {
  pass_ = input;
  rows_ = {0, input.rows()};
  failure_ = absl::OkStatus();
  exchanges_pending_ = 0;
  if (channel_ != nullptr) channel_->BeginStep(input.step);
}

absl::Status HostDevice::EndPass() {
  if (channel_ != nullptr) channel_->EndStep();
  return failure_;
}

absl::Status HostDevice::Read(const float* source, int64_t count, float* out) {
  std::copy_n(source, count, out);
  return absl::OkStatus();
}

absl::Status HostDevice::Import(Device& from, const float* source, int64_t count, float* out) {
  return from.Read(source, count, out);
}

PassStatistics HostDevice::TakeStatistics() {
  PassStatistics taken = std::move(statistics_);
  statistics_ = PassStatistics();
  statistics_.layers.resize(taken.layers.size());
  return taken;
}

FiringCounts HostDevice::TakeFirings() {
  FiringCounts taken = firings_;
  for (std::vector<uint64_t>& layer : firings_) std::fill(layer.begin(), layer.end(), 0);
  return taken;
}

}  // namespace isotherm::gpu_worker
