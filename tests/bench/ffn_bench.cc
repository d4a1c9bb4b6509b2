// ffn_bench [THREADS] [SECONDS]
//
// How near the sparse FFN comes to the memory's read bandwidth, at the shape of the acceptance test: hidden
// 2048, FFN 5632, F16, one token. Three things are timed in turn over layers that no cache holds, so that all
// see the same machine: a plain read of a layer's bundles, the FFN with every neuron computed, and the FFN
// with 10 % of the neurons, scattered. Medians of the rates; bytes are those of the rows that must be read.

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "common/base/thread_pool.h"
#include "common/kernels/row_kernels.h"
#include "common/neuron/bandwidth.h"
#include "common/neuron/ffn.h"
#include "common/neuron/mask.h"

namespace isotherm::neuron {
namespace {

constexpr int64_t kHidden = 2048;
constexpr int64_t kFfn = 5632;
constexpr int64_t kLayers = 16;
constexpr double kActiveShare = 0.1;

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

BundleLayout F16Layout() {
  const int64_t row = kernels::PackedRowBytes(kernels::WeightType::kF16, kHidden);
  return {kernels::WeightType::kF16,
          kernels::WeightType::kF16,
          kernels::WeightType::kF16,
          kHidden,
          row,
          2 * row,
          3 * row};
}

// F16 numbers between 2^-5 and 2^-4: positive, so that every gate fires, as after a predictor that is never
// wrong.
void Fill(base::ThreadPool& pool, uint8_t* memory, int64_t bytes) {
  pool.ParallelFor(bytes, int64_t{2} << 20, [&](int64_t begin, int64_t end, int) {
    auto* halves = reinterpret_cast<uint16_t*>(memory + begin);
    uint32_t state = static_cast<uint32_t>(begin) | 1;
    for (int64_t i = 0; i < (end - begin) / 2; ++i) {
      state = state * 1664525u + 1013904223u;
      halves[i] = static_cast<uint16_t>(0x2800 | (state >> 22));
    }
  });
}

class Bench {
 public:
  Bench(int threads, uint8_t* memory)
      : pool_({.threads = threads, .spin_us = 50}),
        layout_(F16Layout()),
        memory_(memory),
        executor_(&pool_, kHidden, kFfn, 1),
        x_(kHidden, 0.01f),
        y_(kHidden),
        all_(MaskWords(kFfn)) {
    Fill(pool_, memory_, kLayers * LayerBytes());
    SetAll(all_.data(), kFfn);
    std::mt19937 random(1);
    std::bernoulli_distribution active(kActiveShare);
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      std::vector<uint64_t>& mask = scattered_.emplace_back(MaskWords(kFfn));
      for (int64_t j = 0; j < kFfn; ++j) {
        if (active(random)) SetBit(mask.data(), j);
      }
    }
  }

  static int64_t LayerBytes() { return kFfn * F16Layout().bundle_bytes; }

  double Read(int64_t layer) {
    return MeasureReadBandwidth(pool_, memory_ + layer * LayerBytes(), LayerBytes(), absl::ZeroDuration());
  }
  double Dense(int64_t layer) { return Run(layer, all_, true); }
  double Sparse(int64_t layer) { return Run(layer, scattered_[layer], false); }

 private:
  double Run(int64_t layer, const std::vector<uint64_t>& mask, bool dense) {
    const BundleView view{memory_ + layer * LayerBytes(), &layout_, nullptr, kFfn};
    FfnRequest request;
    request.rows = 1;
    request.x = x_.data();
    request.masks = mask.data();
    request.ffn = kFfn;
    request.dense = dense;
    const Clock::time_point start = Clock::now();
    const FfnStatistics statistics = executor_.Run(view, request, y_.data());
    const double seconds = SecondsSince(start);
    if (statistics.active != statistics.computed) std::abort();
    return statistics.computed * layout_.bundle_bytes / seconds;
  }

  base::ThreadPool pool_;
  const BundleLayout layout_;
  uint8_t* const memory_;
  FfnExecutor executor_;
  std::vector<float> x_, y_;
  std::vector<uint64_t> all_;
  std::vector<std::vector<uint64_t>> scattered_;
};

struct Quartiles {
  double low, median, high;
};

Quartiles Summarise(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 4], values[values.size() / 2], values[values.size() * 3 / 4]};
}

void Print(const char* name, const std::vector<double>& rates, double plain) {
  const Quartiles q = Summarise(rates);
  std::printf("%-12s %6.2f GB/s (quartiles %.2f to %.2f), %5.1f %% of the plain read\n", name,
              q.median * 1e-9, q.low * 1e-9, q.high * 1e-9, 100 * q.median / plain);
}

int Main(int threads, double seconds) {
  const int64_t bytes = kLayers * Bench::LayerBytes();
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("ffn_bench: mmap");
    return 1;
  }
  madvise(memory, bytes, MADV_HUGEPAGE);
  Bench bench(threads, static_cast<uint8_t*>(memory));
  std::vector<double> read, dense, sparse;
  const Clock::time_point start = Clock::now();
  for (int64_t i = 0; SecondsSince(start) < seconds || i < kLayers; ++i) {
    read.push_back(bench.Read(i % kLayers));
    dense.push_back(bench.Dense((i + 5) % kLayers));
    sparse.push_back(bench.Sparse((i + 10) % kLayers));
  }
  std::printf("hidden %ld, FFN %ld, F16, %d threads, kernels %s, %zu rounds\n", static_cast<long>(kHidden),
              static_cast<long>(kFfn), threads, kernels::ActiveTarget().c_str(), read.size());
  const double plain = Summarise(read).median;
  Print("plain read", read, plain);
  Print("all", dense, plain);
  Print("10 % active", sparse, plain);
  return 0;
}

}  // namespace
}  // namespace isotherm::neuron

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const double seconds = argc > 2 ? std::atof(argv[2]) : 5;
  if (threads < 1 || !(seconds >= 0)) {
    std::fprintf(stderr, "usage: ffn_bench [THREADS] [SECONDS]\n");
    return 2;
  }
  return isotherm::neuron::Main(threads, seconds);
}
